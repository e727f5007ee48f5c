"""Which implementations of the ops exist here, and how one is loaded."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

Backend = Literal["reference", "cpu", "gpu"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)

# "auto" takes the first of these that works here.
_AUTO_ORDER: tuple[Backend, ...] = ("gpu", "cpu")


class BackendUnavailable(RuntimeError):
    """The backend asked for does not exist or cannot run on this machine.

    Attributes:
        backend: the name that was asked for.
        reason: why it cannot be used.
    """

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"backend {backend!r} is unavailable: {reason}")
        self.backend = backend
        self.reason = reason


def _no_reason() -> str | None:
    return None


def _why_no_numba() -> str | None:
    if find_spec("numba") is None:
        return "Numba is not installed; install it with `pip install numba`"
    return None


def _why_no_gpu() -> str | None:
    if find_spec("cupy") is None:
        return "CuPy is not installed; install it with `pip install 'shardsieve[gpu]'`"
    # Asked of the driver itself: importing CuPy takes half a second and answers no sooner.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no CUDA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error or not count.value:
        return f"the CUDA driver finds no device (error {error}); see `nvidia-smi`"
    return None


# A probe answers None, or why the backend cannot run; it must be cheap and import nothing heavy.
_PROBES: dict[str, Callable[[], str | None]] = {
    "reference": _no_reason,
    "cpu": _why_no_numba,
    "gpu": _why_no_gpu,
}


def why_unavailable(name: str) -> str | None:
    """Say why a backend cannot be used here.

    Args:
        name: a backend's name; "auto" is not one.

    Returns:
        None if the backend can be used, else one line that says why not.
    """
    probe = _PROBES.get(name)
    if probe is None:
        return f"no backend has this name; choose from {', '.join(BACKENDS)}"
    return probe()


def resolve_backend(name: str = "auto") -> Backend:
    """Turn a configured name into a backend that can run here.

    Call it once, record the answer and pass it to the ops: they do not search again.

    Args:
        name: "auto" or the name of a backend.

    Returns:
        The backend to pass to every op.

    Raises:
        BackendUnavailable: the name is unknown, or the backend cannot run here.
    """
    candidates = _AUTO_ORDER if name == "auto" else (name,)
    reasons = {candidate: why_unavailable(candidate) for candidate in candidates}
    for candidate, reason in reasons.items():
        if reason is None:
            return cast("Backend", candidate)
    raise BackendUnavailable(name, "; ".join(str(reason) for reason in reasons.values()))


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """Load the function of an op for a backend.

    Args:
        op: name of an op, which is the name of its folder and of the function.
        backend: "reference", "cpu", ...; "auto" must have been resolved before.

    Returns:
        The function ``shardsieve_kernels.<op>.<backend>.<op>``. It checks nothing.

    Raises:
        BackendUnavailable: the backend is unknown, or cannot run here.
    """
    reason = why_unavailable(backend)
    if reason is not None:
        raise BackendUnavailable(backend, reason)
    if backend == "cpu" and "OMP_NUM_THREADS" in os.environ:
        # Numba hands its number of threads on to the OpenMP library that torch computes with. With
        # another number sums are rounded in another way: results would depend on what ran before.
        os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"].partition(",")[0])
    module = import_module(f"shardsieve_kernels.{op}.{backend}")
    return cast("Callable[..., Any]", getattr(module, op))
