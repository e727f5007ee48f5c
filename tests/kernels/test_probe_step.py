import pytest

from shardsieve_kernels.probe_step import probe_step
from shardsieve_kernels.testing import (
    GRADIENT_TOLERANCE,
    PROBE_CASES,
    TOLERANCE,
    assert_close,
    probe_inputs,
)

by_name = {"ids": lambda case: case.name}


def as_numpy(array):
    """An array of any library in host memory, bf16 as f32."""
    if hasattr(array, "cpu"):
        array = array.cpu()
        return array.float().numpy() if array.dtype.itemsize == 2 else array.numpy()
    return array.get() if hasattr(array, "get") else array


def assert_step_close(got, want, backend, dtype="float32"):
    assert_close(
        "loss_BH", as_numpy(got.loss_BH), as_numpy(want.loss_BH), **TOLERANCE["probe_step"][backend]
    )
    gradients = as_numpy(got.gradient_BHK), as_numpy(want.gradient_BHK)
    assert_close("gradient_BHK", *gradients, **GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("case", PROBE_CASES, **by_name)
def test_matches_reference(case, backend):
    inputs = probe_inputs(case)
    want = probe_step(**inputs, backend="reference")
    got = probe_step(**inputs, backend=backend)
    assert type(got.loss_BH) is type(got.gradient_BHK) is type(inputs["logits_BHK"])
    assert_step_close(got, want, backend, case.dtype)
