"""What the tests of the kernels share: which backends run, and the host twin of the CUDA code."""

import ctypes
from pathlib import Path
from typing import get_args

import pytest

from shardsieve_kernels import Backend, why_unavailable

HOST_TWIN = Path(__file__).parents[2] / "build/native/libshardsieve_host_twin.so"


@pytest.fixture(params=[name for name in get_args(Backend) if name != "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """A test that takes it runs once on every fast backend."""
    return _running(request, request.param)


@pytest.fixture(params=get_args(Backend))
def any_backend(request: pytest.FixtureRequest) -> str:
    """A test that takes it runs once on every backend, the reference included."""
    return _running(request, request.param)


def _running(request: pytest.FixtureRequest, name: str) -> str:
    reason = why_unavailable(name)
    if reason is None:
        return name
    if name in request.config.getoption("--backends").split(","):
        pytest.fail(f"backend {name} must run here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def host_twin() -> ctypes.CDLL:
    """The arithmetic of the CUDA kernels, compiled for the CPU."""
    if not HOST_TWIN.is_file():
        pytest.skip("no host twin; `make native` builds it where there is a C++ compiler")
    return ctypes.CDLL(str(HOST_TWIN))
