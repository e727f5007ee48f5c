"""Checks of what callers pass in; an error names the argument, what was found and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardsieve_kernels._arrays import dtype_name, is_on_gpu, is_torch
from shardsieve_kernels._cuda import is_cupy

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int32", "int64")


def check_array(
    name: str,
    array: Any,
    n_dims: int,
    dtypes: tuple[str, ...],
    backend: str,
    *,
    torch_too: bool = False,
) -> None:
    """Require an array of a given rank, of one of some types, where the backend can read it.

    Every backend reads NumPy arrays; "gpu" reads CuPy arrays, too. Torch tensors pass only if the
    op converts them with ``as_plain``.

    Raises:
        TypeError: not such an array, or of another type.
        ValueError: another number of dimensions.
    """
    from_torch = torch_too and is_torch(array) and array.device.type in ("cpu", "cuda")
    if not isinstance(array, np.ndarray) and not is_cupy(array) and not from_torch:
        raise TypeError(
            f"{name} must be a NumPy array{' or a torch tensor' if torch_too else ''}, "
            f"found {type(array).__name__}; convert it with np.asarray"
        )
    if is_on_gpu(array) and backend != "gpu":
        raise TypeError(
            f"{name} is on the GPU, but backend {backend!r} runs on the CPU; "
            f"use backend='gpu', or copy it with {name}.{'cpu' if from_torch else 'get'}()"
        )
    found = dtype_name(array)
    if found not in dtypes:
        convert = f"to(torch.{dtypes[-1]})" if from_torch else f"astype(np.{dtypes[-1]})"
        raise TypeError(
            f"{name} must have dtype {' or '.join(dtypes)}, found {found}; "
            f"convert it with {name}.{convert}"
        )
    if array.ndim != n_dims:
        raise ValueError(
            f"{name} must have {n_dims} dimension(s), found shape {tuple(array.shape)}; reshape it"
        )


def check_same_length(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Require two arrays to have as many rows.

    Raises:
        ValueError: the lengths differ.
    """
    if len(array) != len(other):
        raise ValueError(
            f"{name} has {len(array)} rows but {other_name} has {len(other)}; "
            "pass one row per sample in both"
        )


def check_labels(name: str, labels_N: np.ndarray, n_classes: int) -> None:
    """Require every label to be a class.

    Raises:
        ValueError: a label is below 0 or not below n_classes.
    """
    if labels_N.size == 0:
        return
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < 0 or high >= n_classes:
        bad = low if low < 0 else high
        row = int(np.argmax(labels_N == bad))
        raise ValueError(
            f"{name} must lie in [0, {n_classes}), found {bad} at row {row}; "
            "map labels to class numbers first"
        )


def check_finite(name: str, values_N: np.ndarray, limit: float) -> None:
    """Require every value to be a number of at most a given size.

    Raises:
        ValueError: a value is NaN or infinite, or its size is above the limit.
    """
    if values_N.size == 0:
        return
    # min and max hand NaN on, so no mask of N bytes is made unless there is something to report.
    low, high = float(values_N.min()), float(values_N.max())
    if -limit <= low and high <= limit:
        return
    with np.errstate(invalid="ignore"):
        bad_N = ~(np.abs(values_N) <= limit)
    row = int(np.argmax(bad_N))
    raise ValueError(
        f"{name} must be finite and at most {limit:g} in size, found {values_N[row]} at row {row} "
        f"({int(bad_N.sum())} such rows); leave such samples out and account for them"
    )


def check_at_least(name: str, value: Any, minimum: int) -> None:
    """Require an integer of at least a given size.

    Raises:
        TypeError: not an integer.
        ValueError: below the minimum.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, found {type(value).__name__}; convert it")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, found {value}; raise it")


def check_in_range(name: str, value: float, low: float, high: float) -> None:
    """Require a number in a closed range.

    Raises:
        ValueError: outside the range, or NaN.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], found {value}; choose another")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of some words.

    Raises:
        ValueError: another word.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}; choose one")
