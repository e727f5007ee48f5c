"""Arrays of NumPy, CuPy and torch as NumPy's or CuPy's own, without a copy.

NumPy and CuPy have no bf16: such an array goes through the ops as its bits, u16, which no op takes
from its caller as numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from shardsieve_kernels._cuda import is_cupy


def is_torch(array: object) -> bool:
    """Tell whether an array is a torch tensor, without importing torch."""
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(array).__mro__)


def is_on_gpu(array: Any) -> bool:
    """Tell whether an array lies in the memory of a GPU."""
    return is_cupy(array) or (is_torch(array) and array.device.type == "cuda")


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype, the same for NumPy, CuPy and torch."""
    return str(array.dtype).removeprefix("torch.")


def as_plain(array: Any) -> Any:
    """Return a NumPy or CuPy array of the same memory; of bf16, its bits as u16."""
    is_bits = dtype_name(array) == "bfloat16"
    if is_torch(array):
        import torch

        array = array.detach()
        if is_bits:
            array = array.view(torch.int16)
        if array.device.type == "cuda":
            import cupy

            array = cupy.asarray(array)
        else:
            array = array.numpy()
    return array.view(np.uint16) if is_bits else array


def as_like(plain: Any, like: Any) -> Any:
    """Give a NumPy or CuPy array back as the kind of another, in the same memory.

    Args:
        plain: on the device of ``like``; u16 are the bits of bf16.
        like: an array of the caller, bf16 if ``plain`` is u16.
    """
    is_bits = plain.dtype == np.uint16
    if not is_torch(like):
        return plain.view(like.dtype) if is_bits else plain
    import torch

    tensor = torch.as_tensor(plain.view(np.int16) if is_bits else plain)
    return tensor.view(torch.bfloat16) if is_bits else tensor


def stream_of(array: Any) -> AbstractContextManager[Any]:
    """Make CuPy launch where torch's current stream waits for it, if the array is torch's."""
    if not is_torch(array) or array.device.type != "cuda":
        return nullcontext()
    import cupy
    import torch

    stream: AbstractContextManager[Any] = cupy.cuda.ExternalStream(
        torch.cuda.current_stream(array.device).cuda_stream, array.device.index
    )
    return stream


def widen(plain: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the numbers of a NumPy array as f32 or f64; u16 are the bits of bf16."""
    if plain.dtype == np.uint16:
        plain = (plain.astype(np.uint32) << 16).view(np.float32)
    return plain.astype(dtype)


def narrow(values: np.ndarray, out: np.ndarray) -> None:
    """Write numbers into an array of another dtype, rounded; u16 get the bits of bf16."""
    if out.dtype != np.uint16:
        # Too large for f16 is infinite, on every backend.
        with np.errstate(over="ignore"):
            out[...] = values
        return
    bits = values.astype(np.float32).view(np.uint32)
    # What is cut off rounds up from a half on; at a half only if the last bit kept is odd.
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    out[...] = np.where(np.isnan(values), 0x7FC0, rounded)
