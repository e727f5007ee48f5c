"""Label files of CIFAR-10N and CIFAR-100N: `.pt` with named arrays, or one array in a `.npy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardsieve.errors import LabelError

Labels = npt.NDArray[np.int64]


def read_label_file(file: Path) -> dict[str, Labels]:
    """Reads label sets by name; nothing in the file is run.

    Args:
        file: A `.pt` file with a dict of arrays (CIFAR-N's), or a `.npy` file with one array,
            which is called `labels`.

    Returns:
        (N,) i64 per name.

    Raises:
        LabelError: It cannot be read without running it, or holds no integer labels.
    """
    if not file.is_file():
        raise LabelError(f"{file}: no such label file")
    if file.suffix == ".npy":
        return {"labels": _integers(_load_npy(file), "labels", file)}
    if file.suffix not in (".pt", ".pth"):
        raise LabelError(f"{file}: a .pt or .npy file is needed")
    content = _load_pt(file)
    if not isinstance(content, dict) or not content:
        raise LabelError(f"{file}: holds no named label sets ({type(content).__name__})")
    return {str(name): _integers(value, str(name), file) for name, value in content.items()}


def _load_npy(file: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise LabelError(
            f"{file}: no array of numbers ({error}). Files such as CIFAR-10_human_ordered.npy hold "
            "pickled Python, in TensorFlow's order: use CIFAR-10_human.pt"
        ) from error


def _load_pt(file: Path) -> Any:
    import pickle

    import torch
    from numpy._core.multiarray import _reconstruct

    # The authors' files hold NumPy arrays, pickled under NumPy 1's names.
    arrays: list[Any] = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        _reconstruct,
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        np.dtypes.Int32DType,
    ]
    try:
        with torch.serialization.safe_globals(arrays):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise LabelError(f"{file}: cannot be read without running it: {reason}") from error


def _integers(value: Any, name: str, file: Path) -> Labels:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise LabelError(
            f"{file}: {name} is no list of whole numbers ({array.dtype}, shape {array.shape})"
        )
    return array.astype(np.int64)
