"""From a CUDA source to functions that CuPy can launch."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent
# The paths of CUDA's own headers are CuPy's business.
OPTIONS = ("-std=c++17", f"-I{_ROOT}")


def cuda_function(op: str, name: str) -> Any:
    """Load a kernel of an op for the current device.

    A fatbin that was built beforehand (CMakeLists.txt) is taken as it is. Without one CuPy compiles
    the source at first use, with NVRTC, and keeps the result in its cache.

    Args:
        op: name of the op, whose folder holds ``<op>.cu``.
        name: the kernel, declared ``extern "C"``.

    Returns:
        A ``cupy.RawKernel``.
    """
    import cupy

    return _loaded(op, cupy.cuda.Device().id).get_function(name)


@functools.lru_cache(maxsize=64)
def _loaded(op: str, device: int) -> Any:
    import cupy

    del device  # One module per device: the cache keeps them apart.
    fatbin = _ROOT / op / f"{op}.fatbin"
    if fatbin.is_file():
        return cupy.RawModule(path=str(fatbin))
    return cupy.RawModule(code=cuda_source(op), options=OPTIONS, backend="nvrtc")


def cuda_source(op: str) -> str:
    """Return the CUDA source of an op, stamped with the headers that it includes.

    CuPy's cache knows a kernel by its source alone; without the stamp it would go on with what it
    had compiled before a header changed.
    """
    headers = sorted([*_ROOT.glob("*.cuh"), *(_ROOT / op).glob("*.cuh")])
    stamp = hashlib.sha256(b"".join(header.read_bytes() for header in headers)).hexdigest()
    return f"// headers {stamp}\n" + (_ROOT / op / f"{op}.cu").read_text(encoding="utf-8")


def is_cupy(array: object) -> bool:
    """Tell whether an array is CuPy's, without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


def like_inputs(inputs: tuple[object, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave results on the device if any input was there, else copy them to the host."""
    if any(is_cupy(array) for array in inputs):
        return outputs
    return tuple(array.get() for array in outputs)


def lanes_and_items(n_classes: int) -> tuple[int, int]:
    """Choose how many threads share a row, and how many columns each reads at a time."""
    for lanes, items in ((1, 4), (4, 4), (8, 8), (32, 8)):
        if n_classes <= lanes * items:
            return lanes, items
    return 32, 32
