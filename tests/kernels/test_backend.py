import ctypes
import os
import subprocess
import sys

import pytest

from shardsieve_kernels import BackendUnavailable, _backend, resolve_backend, why_unavailable
from shardsieve_kernels._backend import implementation


@pytest.mark.parametrize("reason, taken", [(None, "gpu"), ("no driver", "cpu")])
def test_auto_takes_the_gpu_where_there_is_one(monkeypatch, reason, taken):
    monkeypatch.setitem(_backend._PROBES, "gpu", lambda: reason)
    assert resolve_backend("auto") == taken


def test_a_gpu_that_was_asked_for_is_never_replaced(monkeypatch):
    monkeypatch.setitem(_backend._PROBES, "gpu", lambda: "no driver")
    for ask in (lambda: resolve_backend("gpu"), lambda: implementation("class_gmm", "gpu")):
        with pytest.raises(BackendUnavailable, match="'gpu' is unavailable: no driver"):
            ask()


@pytest.mark.parametrize(
    "installed, library, reason",
    [(None, "libc.so.6", "CuPy is not installed"), ("cupy", "libnone.so", "no CUDA driver")],
)
def test_why_there_is_no_gpu(monkeypatch, installed, library, reason):
    load = ctypes.CDLL
    monkeypatch.setattr(_backend, "find_spec", lambda name: installed)
    monkeypatch.setattr(_backend.ctypes, "CDLL", lambda name: load(library))
    assert reason in why_unavailable("gpu")


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_name_resolves_to_itself(name):
    assert resolve_backend(name) == name
    assert why_unavailable(name) is None


def test_an_unknown_name_says_which_exist():
    with pytest.raises(
        BackendUnavailable, match=r"'abacus'.*choose from reference, cpu, gpu"
    ) as caught:
        resolve_backend("abacus")
    assert caught.value.backend == "abacus"
    assert caught.value.reason == why_unavailable("abacus")


def test_a_missing_library_is_the_reason(monkeypatch):
    monkeypatch.setattr(_backend, "find_spec", lambda name: None)
    for ask in (lambda: resolve_backend("auto"), lambda: implementation("class_gmm", "cpu")):
        with pytest.raises(BackendUnavailable, match="Numba is not installed; install it"):
            ask()
    assert resolve_backend("reference") == "reference"


@pytest.mark.parametrize("op", ["softmax_stats", "class_gmm"])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_an_implementation_is_named_like_its_op(op, name):
    function = implementation(op, name)
    assert function.__name__ == op
    assert function.__module__ == f"shardsieve_kernels.{op}.{name}"


def test_auto_is_no_implementation():
    with pytest.raises(BackendUnavailable, match="'auto'"):
        implementation("class_gmm", "auto")


def test_importing_an_op_does_not_import_numba():
    code = (
        "import sys, shardsieve_kernels, shardsieve_kernels.class_gmm as gmm, numpy as np\n"
        "import shardsieve_kernels.softmax_stats, shardsieve_kernels.testing\n"
        "gmm.class_gmm(np.zeros(3), np.zeros(3, int), 1, backend='reference')\n"
        "print(sorted({'numba', 'sklearn', 'torch', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_numba_leaves_torch_the_threads_that_it_was_given():
    code = (
        "import numpy as np, torch\n"
        "from shardsieve_kernels.softmax_stats import softmax_stats\n"
        "softmax_stats(np.ones((9, 3), np.float32), np.zeros(9, np.int32), backend='cpu')\n"
        "print(torch.get_num_threads())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("NUMBA_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "1\n"
