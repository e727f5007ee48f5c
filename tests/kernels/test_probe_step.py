import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve_kernels.probe_step import probe_step
from shardsieve_kernels.softmax_stats import softmax_stats
from shardsieve_kernels.testing import (
    GRADIENT_TOLERANCE,
    PROBE_CASES,
    TOLERANCE,
    assert_close,
    probe_inputs,
)

by_name = {"ids": lambda case: case.name}
CASES = {case.name: case for case in PROBE_CASES}


def as_numpy(array):
    """An array of any library in host memory, bf16 as f32."""
    if isinstance(array, torch.Tensor):
        array = array.cpu()
        return array.float().numpy() if array.dtype.itemsize == 2 else array.numpy()
    return array.get() if hasattr(array, "get") else array


def as_bits(array):
    if isinstance(array, torch.Tensor):
        return array.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return array.tobytes()


def assert_step_close(got, want, backend, dtype="float32"):
    assert_close(
        "loss_BH", as_numpy(got.loss_BH), as_numpy(want.loss_BH), **TOLERANCE["probe_step"][backend]
    )
    gradients = as_numpy(got.gradient_BHK), as_numpy(want.gradient_BHK)
    assert_close("gradient_BHK", *gradients, **GRADIENT_TOLERANCE[dtype])


def loss_by_definition(logits, labels_B, q_H):
    """(1 - p^q) / q of each sample and head in torch, which differentiates it by itself."""
    log_p_BHK = torch.log_softmax(logits, dim=2)
    log_p_BH = log_p_BHK[torch.arange(len(logits)), :, torch.as_tensor(labels_B).long()]
    losses_B = [
        -log_p_B if q == 0 else -torch.expm1(q * log_p_B) / q
        for q, log_p_B in zip(q_H.tolist(), log_p_BH.T, strict=True)
    ]
    return torch.stack(losses_B, dim=1)


@pytest.mark.parametrize("case", PROBE_CASES, **by_name)
def test_matches_reference(case, backend):
    inputs = probe_inputs(case)
    want = probe_step(**inputs, backend="reference")
    got = probe_step(**inputs, backend=backend)
    assert type(got.loss_BH) is type(got.gradient_BHK) is type(inputs["logits_BHK"])
    assert_step_close(got, want, backend, case.dtype)


@pytest.mark.parametrize("name", ["two-classes-f64", "many-heads", "thousand-classes-f64"])
def test_gradient_is_that_of_autograd(name, any_backend):
    inputs = probe_inputs(CASES[name])
    inputs["logits_BHK"] = inputs["logits_BHK"].astype(np.float64)
    logits = torch.from_numpy(inputs["logits_BHK"]).requires_grad_()
    loss_BH = loss_by_definition(logits, inputs["labels_B"], inputs["q_H"])
    weights_BH = inputs["weights_BH"]
    weights_BH = np.ones(loss_BH.shape, np.float32) if weights_BH is None else weights_BH
    (loss_BH * torch.from_numpy(weights_BH)).sum().backward()

    got = probe_step(**inputs, backend=any_backend)
    np.testing.assert_allclose(got.loss_BH, loss_BH.detach().numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.gradient_BHK, logits.grad.numpy(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("q", [0.0, 1e-8, 0.4, 1.0])
def test_gradient_is_that_of_finite_differences(q, any_backend):
    rng = np.random.default_rng(5)
    logits_BHK, labels_B = rng.normal(0, 2, (3, 1, 4)), np.array([0, 3, 1])
    got = probe_step(logits_BHK, labels_B, [q], backend=any_backend).gradient_BHK

    def loss(logits_BHK):
        return loss_by_definition(torch.from_numpy(logits_BHK), labels_B, np.array([q])).numpy()

    for k in range(4):
        step_BHK = np.zeros_like(logits_BHK)
        step_BHK[:, :, k] = 1e-5
        slope_BH = (loss(logits_BHK + step_BHK) - loss(logits_BHK - step_BHK)) / 2e-5
        np.testing.assert_allclose(got[:, :, k], slope_BH, rtol=1e-6, atol=1e-8)


def test_loss_is_that_of_softmax_stats(any_backend):
    inputs = probe_inputs(CASES["odd"])
    logits_NK, labels_N = inputs["logits_BHK"][:, 0], inputs["labels_B"]
    stats = softmax_stats(logits_NK, labels_N, q=0.7, backend=any_backend)
    heads_BHK = np.repeat(inputs["logits_BHK"], 2, axis=1)
    got = probe_step(heads_BHK, labels_N, [0.0, 0.7], backend=any_backend)
    np.testing.assert_allclose(got.loss_BH[:, 0], stats.loss_N, rtol=1e-5)
    np.testing.assert_allclose(got.loss_BH[:, 1], stats.gce_N, rtol=1e-5)


def test_small_and_large_losses_keep_their_digits(any_backend):
    logits_BHK = np.array([[[0.0, -30.0]], [[0.0, -80.0]], [[-2000.0, 0.0]]], np.float32)
    got = probe_step(logits_BHK, np.zeros(3, np.int32), [0.0], backend=any_backend)
    np.testing.assert_allclose(got.loss_BH[:, 0], [np.exp(-30.0), np.exp(-80.0), 2000], rtol=1e-5)
    # p - 1 is 0 in f32, and the gradient of the label not.
    np.testing.assert_allclose(got.gradient_BHK[:2, 0, 0], -np.exp([-30.0, -80.0]), rtol=1e-5)
    assert got.gradient_BHK[2, 0].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 8])
def test_a_row_that_is_not_finite_has_no_loss_and_no_gradient(any_backend, bad, column):
    inputs = probe_inputs(CASES["many-heads"])
    inputs["logits_BHK"] = inputs["logits_BHK"][:9, :3]
    inputs |= {"labels_B": inputs["labels_B"][:9], "q_H": inputs["q_H"][:3], "weights_BH": None}
    clean = probe_step(**inputs, backend=any_backend)
    inputs["logits_BHK"][4, 1, column] = bad
    got = probe_step(**inputs, backend=any_backend)
    assert np.argwhere(np.isnan(got.loss_BH)).tolist() == [[4, 1]]
    assert (got.gradient_BHK[4, 1] == 0).all()
    for field, values in got._asdict().items():
        values[4, 1] = clean._asdict()[field][4, 1]
        assert values.tobytes() == getattr(clean, field).tobytes(), field


def test_a_loss_beyond_f32_has_no_answer(any_backend):
    logits_BHK = np.array([[[1e300, -1e300]], [[1.7e308, -1.7e308]], [[0.0, 1e38]]])
    got = probe_step(logits_BHK, np.array([1, 1, 0]), [0.0], backend=any_backend)
    assert np.isnan(got.loss_BH[:, 0]).tolist() == [True, True, False]
    assert got.gradient_BHK[:, 0].tolist() == [[0, 0], [0, 0], [-1, 1]]


def test_weight_0_leaves_a_sample_out_and_keeps_its_loss(any_backend):
    inputs = probe_inputs(CASES["bad-rows"])
    weights_BH = inputs.pop("weights_BH")
    plain = probe_step(**inputs, backend=any_backend)
    got = probe_step(**inputs, weights_BH=weights_BH, backend=any_backend)
    assert got.loss_BH.tobytes() == plain.loss_BH.tobytes()
    out_BH = weights_BH == 0.0
    assert out_BH.any() and not out_BH.all()
    assert (got.gradient_BHK[out_BH] == 0.0).all()
    weighed_BHK = plain.gradient_BHK * weights_BH[:, :, None]
    np.testing.assert_allclose(got.gradient_BHK, weighed_BHK, rtol=1e-6, atol=1e-37)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 40)),
    st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 1e-31, 1e-8, 1.0]),
    st.sampled_from([0.1, 5.0, 100.0]),
    st.integers(0, 2**31),
)
def test_gradients_sum_to_0_and_pull_towards_the_label(shape, q, scale, seed):
    rng = np.random.default_rng(seed)
    logits_BHK = rng.normal(0, scale, shape).astype(np.float32)
    labels_B = rng.integers(0, shape[2], shape[0])
    inputs = (logits_BHK, labels_B, np.full(shape[1], q))
    want = probe_step(*inputs, backend="reference")
    got = probe_step(*inputs, backend="cpu")
    assert_step_close(got, want, "cpu")
    assert (got.loss_BH >= 0).all()
    at_label = np.arange(shape[0]), slice(None), labels_B
    assert (got.gradient_BHK[at_label] <= 0).all()
    assert np.abs(got.gradient_BHK.sum(axis=2)).max() <= 1e-6
    got.gradient_BHK[at_label] = 0
    assert (got.gradient_BHK >= 0).all()


@pytest.mark.parametrize("name", ["many-heads", "brain-even", "thousand-classes", "bad-rows"])
def test_rows_do_not_see_each_other_and_bits_repeat(name, backend):
    inputs = probe_inputs(CASES[name])
    first = probe_step(**inputs, backend=backend)
    again = probe_step(**inputs, checked=True, backend=backend)
    order = np.random.default_rng(1).permutation(len(inputs["labels_B"]))[:-3]
    moved = {
        key: value if value is None or key == "q_H" else value[order]
        for key, value in inputs.items()
    }
    permuted = probe_step(**moved, backend=backend)
    for field in first._fields:
        assert as_bits(getattr(again, field)) == as_bits(getattr(first, field)), field
        assert as_bits(getattr(permuted, field)) == as_bits(getattr(first, field)[order]), field


@pytest.mark.parametrize("case", PROBE_CASES, **by_name)
def test_in_place_and_elsewhere_alike(case, any_backend):
    inputs = probe_inputs(case)
    kept = as_bits(inputs["logits_BHK"])
    first = probe_step(**inputs, backend=any_backend)
    assert as_bits(inputs["logits_BHK"]) == kept
    logits_BHK = inputs["logits_BHK"]
    in_place = probe_step(**inputs, out=logits_BHK, backend=any_backend)
    assert in_place.gradient_BHK is logits_BHK
    assert as_bits(logits_BHK) == as_bits(first.gradient_BHK)
    assert as_bits(in_place.loss_BH) == as_bits(first.loss_BH)


def test_torch_tensors_are_read_and_written_where_they_lie(any_backend):
    inputs = probe_inputs(CASES["many-heads"])
    want = probe_step(**inputs, backend=any_backend)
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    out = torch.empty_like(tensors["logits_BHK"])
    got = probe_step(**tensors, out=out, backend=any_backend)
    assert got.gradient_BHK is out
    for field in want._fields:
        assert isinstance(getattr(got, field), torch.Tensor)
        assert as_bits(getattr(got, field)) == as_bits(getattr(want, field)), field


def test_order_in_memory_and_width_of_labels_do_not_matter(any_backend):
    inputs = probe_inputs(CASES["many-heads"])
    want = probe_step(**inputs, backend=any_backend)
    inputs["logits_BHK"] = np.asfortranarray(inputs["logits_BHK"])
    inputs["weights_BH"] = np.asfortranarray(inputs["weights_BH"])
    inputs["labels_B"] = inputs["labels_B"].astype(np.int64)
    got = probe_step(**inputs, backend=any_backend)
    for field in want._fields:
        assert as_bits(getattr(got, field)) == as_bits(getattr(want, field)), field


LOGITS_BHK, LABELS_B, Q_H = np.zeros((4, 2, 3), np.float32), np.zeros(4, np.int32), np.zeros(2)
READ_ONLY_BHK = np.zeros((4, 2, 3), np.float32)
READ_ONLY_BHK.flags.writeable = False
MEMORY = np.zeros(30, np.float32)
BAD_INPUTS = {
    "logits-list": ({"logits_BHK": [[[1.0]]]}, TypeError, "logits_BHK must be a NumPy array or a"),
    "logits-int": ({"logits_BHK": np.zeros((4, 2, 3), int)}, TypeError, "logits_BHK .*bfloat16 or"),
    "logits-bits": ({"logits_BHK": np.zeros((4, 2, 3), np.uint16)}, TypeError, "found uint16"),
    "logits-2d": ({"logits_BHK": np.zeros((4, 3))}, ValueError, r"3 dimension.*\(4, 3\)"),
    "no-class": ({"logits_BHK": np.zeros((4, 2, 0))}, ValueError, "at least one head and one"),
    "labels-float": ({"labels_B": np.zeros(4)}, TypeError, "labels_B must have dtype int32"),
    "labels-torch": ({"labels_B": torch.zeros(4)}, TypeError, r"labels_B.to\(torch.int64\)"),
    "length": ({"labels_B": np.zeros(5, int)}, ValueError, "logits_BHK has 4 rows but labels_B"),
    "label-high": ({"labels_B": np.array([0, 1, 3, 0])}, ValueError, "labels_B .*found 3 at row 2"),
    "heads": ({"q_H": np.zeros(3)}, ValueError, "q_H has 3 values but logits_BHK has 2 heads"),
    "q-high": ({"q_H": [0.5, 1.5]}, ValueError, r"q_H must lie in \[0, 1\], found 1.5"),
    "q-low": ({"q_H": [-0.5, 0.5]}, ValueError, r"q_H must lie in \[0, 1\], found -0.5"),
    "q-nan": ({"q_H": [0.5, np.nan]}, ValueError, "q_H must lie in"),
    "weights-f64": ({"weights_BH": np.ones((4, 2))}, TypeError, "weights_BH must have dtype float"),
    "weights-shape": ({"weights_BH": np.ones((4, 3), np.float32)}, ValueError, r"shape \(4, 2\)"),
    "weights-nan": (
        {"weights_BH": np.array([[1, 1], [1, np.nan], [1, 1], [1, 1]], np.float32)},
        ValueError,
        r"weights_BH\[:, 1\] must be finite.* at row 1",
    ),
    "out-dtype": ({"out": np.zeros((4, 2, 3))}, TypeError, "out must have dtype float32"),
    "out-shape": ({"out": np.zeros((4, 3, 2), np.float32)}, ValueError, "out has shape"),
    "out-order": ({"out": np.zeros((3, 2, 4), np.float32).T}, ValueError, "out must lie in C or"),
    "out-read-only": ({"out": READ_ONLY_BHK}, ValueError, "out must be writeable"),
    "out-overlaps": (
        {"logits_BHK": MEMORY[:24].reshape(4, 2, 3), "out": MEMORY[6:].reshape(4, 2, 3)},
        ValueError,
        "out overlaps with logits_BHK",
    ),
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_alike(bad, any_backend):
    change, error, message = bad
    arguments = {"logits_BHK": LOGITS_BHK, "labels_B": LABELS_B, "q_H": Q_H, **change}
    with pytest.raises(error, match=message):
        probe_step(**arguments, backend=any_backend)


def test_checked_values_are_not_looked_at():
    # 2 is no q, and what comes of it is the caller's: no pass over the arguments is paid for.
    got = probe_step(LOGITS_BHK, LABELS_B, [0.0, 2.0], checked=True, backend="reference")
    np.testing.assert_allclose(got.loss_BH[:, 1], (1 - 1 / 9) / 2, rtol=1e-6)


# The kernels of every row length that lanes_and_items chooses for, and those that read in pieces.
VARIANTS = ("1x4", "4x4", "8x8", "32x8", "32x32")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "case", [case for case in PROBE_CASES if case.dtype.endswith(("32", "64"))], **by_name
)
def test_the_arithmetic_of_the_cuda_kernel(case, variant, host_twin):
    inputs = probe_inputs(case)
    want = probe_step(**inputs, backend="reference")
    logits_BHK, weights_BH = inputs["logits_BHK"], inputs["weights_BH"]
    q_H = inputs["q_H"].astype(case.dtype)
    for pack in (1, 2) if case.dtype == "float32" and case.n_classes % 2 == 0 else (1,):
        function = getattr(host_twin, f"probe_step_{case.dtype}_{variant}x{pack}")
        loss_BH = np.full(want.loss_BH.shape, 123, np.float32)
        gradient_BHK = np.full_like(logits_BHK, 123)
        arrays = (logits_BHK, inputs["labels_B"], q_H, weights_BH)
        pointers = [None if a is None else ctypes.c_void_p(a.ctypes.data) for a in arrays]
        shape = (
            ctypes.c_int64(loss_BH.size),
            ctypes.c_int32(case.n_heads),
            ctypes.c_int32(case.n_classes),
        )
        outputs = [ctypes.c_void_p(a.ctypes.data) for a in (loss_BH, gradient_BHK)]
        function(*pointers, *shape, *outputs)
        assert_close("loss_BH", loss_BH, want.loss_BH, **TOLERANCE["probe_step"]["gpu"])
        tolerance = GRADIENT_TOLERANCE[case.dtype]
        assert_close("gradient_BHK", gradient_BHK, want.gradient_BHK, **tolerance)
