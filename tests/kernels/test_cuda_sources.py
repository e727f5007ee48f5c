"""Every CUDA source compiles with NVRTC, as CuPy does it at first use where there is no fatbin."""

import ctypes
from pathlib import Path

import pytest

import shardsieve_kernels
from shardsieve_kernels import _cuda

OPS = sorted(path.stem for path in Path(shardsieve_kernels.__file__).parent.glob("*/*.cu"))


@pytest.fixture(scope="module")
def nvrtc() -> tuple[ctypes.CDLL, str]:
    """The compiler, which needs no GPU, and the folder of CUDA's headers; both come with torch."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    try:
        library = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
    except pathfinder.DynamicLibNotFoundError as error:
        pytest.skip(f"no NVRTC: {error}")
    return ctypes.CDLL(library), pathfinder.find_nvidia_header_directory("cudart")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_accepts(op, architecture, nvrtc):
    compiler, headers = nvrtc
    program = ctypes.c_void_p()
    source = _cuda.cuda_source(op).encode()
    assert compiler.nvrtcCreateProgram(ctypes.byref(program), source, b"", 0, None, None) == 0
    options = [*_cuda.OPTIONS, f"-I{headers}", f"--gpu-architecture={architecture}"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = compiler.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, log.value.decode()


def test_a_changed_header_changes_the_source_that_cupy_knows_a_kernel_by(tmp_path, monkeypatch):
    (tmp_path / "op").mkdir()
    (tmp_path / "op/op.cu").write_text('#include "op/op.cuh"\n')
    (tmp_path / "op/op.cuh").write_text("// one\n")
    monkeypatch.setattr(_cuda, "_ROOT", tmp_path)
    before = _cuda.cuda_source("op")
    (tmp_path / "op/op.cuh").write_text("// two\n")
    assert _cuda.cuda_source("op") != before
    assert before.endswith('#include "op/op.cuh"\n')
