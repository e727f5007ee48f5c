"""Arrays of other libraries as NumPy's or CuPy's, over the same memory, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardsieve_kernels._cuda import is_cupy

# Numbers of the DLPack standard for memory that the host reads: CPU, and CUDA's pinned memory.
_ON_HOST = (1, 3)


def is_torch(array: object) -> bool:
    """Tell whether an array is a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch"


def as_native(array: Any) -> Any:
    """View an array as NumPy's if its memory is the host's, as CuPy's if it is a GPU's.

    Nothing is copied and no value changes place. What offers none of ``__array_interface__``,
    ``__cuda_array_interface__`` and DLPack is returned as it is, for the checks to name it.

    Args:
        array: a NumPy or CuPy array, a torch tensor, or what follows one of the three protocols.

    Returns:
        A ``numpy.ndarray`` or ``cupy.ndarray`` over the same memory, or `array` itself.
    """
    if isinstance(array, np.ndarray) or is_cupy(array):
        return array
    if is_torch(array):
        # Losses are often still part of a graph; their values are what counts here.
        array = array.detach()
        return _cupy().asarray(array) if array.is_cuda else array.numpy()
    if hasattr(array, "__cuda_array_interface__"):
        return _cupy().asarray(array)
    if hasattr(array, "__array_interface__"):
        return np.asarray(array)
    if hasattr(array, "__dlpack_device__"):
        on_host = array.__dlpack_device__()[0] in _ON_HOST
        return (np if on_host else _cupy()).from_dlpack(array)
    return array


def like(sample: Any, result: Any) -> Any:
    """Hand a NumPy or CuPy result on as the kind of array that was given, over the same memory.

    Args:
        sample: what the caller gave.
        result: (...) a NumPy or CuPy array.

    Returns:
        A torch tensor on the result's device if `sample` is one, else `result` itself.
    """
    if not is_torch(sample):
        return result
    import torch

    return torch.from_dlpack(result) if is_cupy(result) else torch.from_numpy(result)


def _cupy() -> Any:
    import cupy

    return cupy
