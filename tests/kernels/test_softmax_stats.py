import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from shardsieve_kernels.softmax_stats import softmax_stats
from shardsieve_kernels.testing import SOFTMAX_CASES, TOLERANCE, assert_close, softmax_inputs

by_name = {"ids": lambda case: case.name}


@pytest.mark.parametrize("q", [0.0, 0.7])
@pytest.mark.parametrize("case", SOFTMAX_CASES, **by_name)
def test_matches_reference(case, q, backend):
    logits_NK, labels_N = softmax_inputs(case)
    want = softmax_stats(logits_NK, labels_N, q=q, backend="reference")
    got = softmax_stats(logits_NK, labels_N, q=q, backend=backend)
    assert np.array_equal(got.pred_N, want.pred_N)
    for field in want._fields:
        tolerance = TOLERANCE["softmax_stats"][backend]
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["plain", "extreme"])
def test_matches_float64_log_softmax(any_backend, scale):
    rng = np.random.default_rng(3)
    logits_NK = (rng.uniform(-1, 1, (400, 12)) * scale).astype(np.float32)
    labels_N = rng.integers(0, 12, 400)
    log_p_NK = log_softmax(logits_NK.astype(np.float64), axis=1)
    rows_N = np.arange(400)
    got = softmax_stats(logits_NK, labels_N, backend=any_backend)

    p_NK = np.exp(log_p_NK)
    others_NK = p_NK.copy()
    others_NK[rows_N, labels_N] = -1
    entropy_N = -np.where(p_NK > 0, p_NK * log_p_NK, 0.0).sum(axis=1)
    want = {
        "loss_N": -log_p_NK[rows_N, labels_N],
        "p_label_N": p_NK[rows_N, labels_N],
        "margin_N": p_NK[rows_N, labels_N] - others_NK.max(axis=1),
        "entropy_N": entropy_N,
    }
    for field, values in want.items():
        tolerance = TOLERANCE["softmax_stats"][any_backend]
        np.testing.assert_allclose(getattr(got, field), values, **tolerance, err_msg=field)
    assert np.array_equal(got.pred_N, logits_NK.argmax(axis=1))


def test_loss_matches_torch(any_backend):
    logits_NK, labels_N = softmax_inputs(SOFTMAX_CASES[4])
    want = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits_NK).double(), torch.from_numpy(labels_N).long(), reduction="none"
    )
    got = softmax_stats(logits_NK, labels_N, backend=any_backend)
    rtol = TOLERANCE["softmax_stats"][any_backend]["rtol"]
    np.testing.assert_allclose(got.loss_N, want.numpy(), rtol=rtol, atol=1e-12)


def test_small_losses_keep_their_digits(any_backend):
    logits_NK = np.array([[0.0, -30.0], [0.0, -80.0], [0.0, -1e4]], np.float32)
    got = softmax_stats(logits_NK, np.zeros(3, np.int32), backend=any_backend)
    # -log(1 / (1 + e^-30)) is 0 if the sum is rounded first.
    np.testing.assert_allclose(got.loss_N, [np.exp(-30.0), np.exp(-80.0), 0.0], rtol=1e-6)
    np.testing.assert_allclose(got.gce_N, got.loss_N, rtol=1e-6)


@pytest.mark.parametrize("q", [0.0, 5e-324, 1e-8, 0.7, 1.0])
def test_generalised_cross_entropy(any_backend, q):
    logits_NK, labels_N = softmax_inputs(SOFTMAX_CASES[4])
    got = softmax_stats(logits_NK, labels_N, q=q, backend=any_backend)
    loss_N = got.loss_N.astype(np.float64)
    want_N = {
        0.0: loss_N,
        5e-324: loss_N,
        1e-8: loss_N * (1 - 0.5e-8 * loss_N),
        0.7: (1 - np.exp(-loss_N) ** 0.7) / 0.7,
        1.0: 1 - np.exp(-loss_N),
    }[q]
    np.testing.assert_allclose(got.gce_N, want_N, rtol=1e-6, atol=1e-9)


def test_ties_take_the_smallest_index(any_backend):
    logits_NK = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)
    got = softmax_stats(logits_NK, np.array([2, 3]), backend=any_backend)
    assert got.pred_N.tolist() == [1, 0]
    np.testing.assert_allclose(got.margin_N, [0.0, 0.0], atol=1e-7)
    assert got.entropy_N[1] == pytest.approx(np.log(4))


def test_one_class_has_loss_0_and_margin_1(any_backend):
    got = softmax_stats(
        np.array([[5.0], [-1e30]], np.float32), np.zeros(2, int), backend=any_backend
    )
    assert got.loss_N.tolist() == got.gce_N.tolist() == got.entropy_N.tolist() == [0.0, 0.0]
    assert got.margin_N.tolist() == got.p_label_N.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_row_that_is_not_finite_has_no_answer(any_backend, bad, column):
    logits_NK = np.zeros((3, 3), np.float32)
    clean = softmax_stats(logits_NK, np.array([0, 1, 2]), backend=any_backend)
    logits_NK[1, column] = bad
    got = softmax_stats(logits_NK, np.array([0, 1, 2]), backend=any_backend)
    for field, values in got._asdict().items():
        assert values[1] == -1 if field == "pred_N" else np.isnan(values[1]), field
        assert np.array_equal(values[[0, 2]], getattr(clean, field)[[0, 2]]), field


def test_a_loss_beyond_f32_has_no_answer(any_backend):
    logits_NK = np.array([[1e300, -1e300], [1.7e308, -1.7e308], [0.0, 1e38]])
    got = softmax_stats(logits_NK, np.array([1, 1, 0]), backend=any_backend)
    assert np.isnan(got.loss_N).tolist() == [True, True, False]
    assert got.pred_N.tolist() == [-1, -1, 1]
    assert got.entropy_N[2] == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda k: st.lists(
            st.lists(st.floats(-1e4, 1e4, width=32), min_size=k, max_size=k), min_size=1, max_size=9
        )
    ),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_every_field_stays_in_its_range(rows, q, seed):
    logits_NK = np.array(rows, np.float32)
    n_classes = logits_NK.shape[1]
    labels_N = np.random.default_rng(seed).integers(0, n_classes, len(rows))
    want = softmax_stats(logits_NK, labels_N, q=q, backend="reference")
    got = softmax_stats(logits_NK, labels_N, q=q, backend="cpu")
    assert (got.loss_N >= 0).all()
    assert (got.gce_N >= 0).all() and (got.gce_N <= got.loss_N * (1 + 1e-6)).all()
    assert (np.abs(got.margin_N) <= 1).all()
    assert ((got.margin_N >= 0) | (got.pred_N != labels_N)).all()
    assert (got.entropy_N >= 0).all() and (got.entropy_N <= np.log(n_classes) + 1e-6).all()
    for field in want._fields:
        tolerance = TOLERANCE["softmax_stats"]["cpu"]
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)


def test_rows_do_not_see_each_other_and_bits_repeat(backend):
    logits_NK, labels_N = softmax_inputs(SOFTMAX_CASES[4])
    order = np.random.default_rng(1).permutation(len(labels_N))
    first = softmax_stats(logits_NK, labels_N, backend=backend)
    again = softmax_stats(logits_NK, labels_N, backend=backend)
    permuted = softmax_stats(logits_NK[order], labels_N[order], backend=backend)
    strided = softmax_stats(
        np.asfortranarray(logits_NK), labels_N.astype(np.int64), backend=backend
    )
    for field in first._fields:
        bits = getattr(first, field).tobytes()
        assert getattr(again, field).tobytes() == bits, field
        assert getattr(strided, field).tobytes() == bits, field
        assert getattr(permuted, field).tobytes() == getattr(first, field)[order].tobytes(), field


def test_the_input_is_left_alone(backend):
    logits_NK, labels_N = softmax_inputs(SOFTMAX_CASES[8])
    kept_NK, kept_N = logits_NK.copy(), labels_N.copy()
    for name in ("reference", backend):
        softmax_stats(logits_NK, labels_N, backend=name)
        assert np.array_equal(logits_NK, kept_NK, equal_nan=True)
        assert np.array_equal(labels_N, kept_N)


LOGITS_NK, LABELS_N = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
BAD_INPUTS = {
    "logits-list": ({"logits_NK": [[1.0]]}, TypeError, "logits_NK must be a NumPy array"),
    "logits-int": ({"logits_NK": np.zeros((4, 3), int)}, TypeError, "logits_NK must have dtype"),
    "logits-1d": ({"logits_NK": np.zeros(4)}, ValueError, r"logits_NK must have 2 dim.*\(4,\)"),
    "no-class": ({"logits_NK": np.zeros((4, 0))}, ValueError, "logits_NK must have at least one"),
    "labels-float": ({"labels_N": np.zeros(4)}, TypeError, "labels_N must have dtype int32"),
    "length": ({"labels_N": np.zeros(5, int)}, ValueError, "logits_NK has 4 rows but labels_N"),
    "label-high": ({"labels_N": np.array([0, 1, 3, 0])}, ValueError, "labels_N .*found 3 at row 2"),
    "label-low": (
        {"labels_N": np.array([0, -1, 2, 0])},
        ValueError,
        "labels_N .*found -1 at row 1",
    ),
    "q-high": ({"q": 1.5}, ValueError, r"q must lie in \[0, 1\], found 1.5"),
    "q-nan": ({"q": float("nan")}, ValueError, "q must lie in"),
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_alike(bad, any_backend):
    change, error, message = bad
    arguments = {"logits_NK": LOGITS_NK, "labels_N": LABELS_N, "q": 0.7, **change}
    with pytest.raises(error, match=message):
        softmax_stats(**arguments, backend=any_backend)


# The kernels of every row length that lanes_and_items chooses for, and one that is too short.
VARIANTS = ("1x4", "4x4", "8x8", "32x8", "32x32")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "case", [case for case in SOFTMAX_CASES if case.dtype != "float16"], **by_name
)
def test_the_arithmetic_of_the_cuda_kernel(case, variant, host_twin):
    logits_NK, labels_N = softmax_inputs(case)
    want = softmax_stats(logits_NK, labels_N, q=0.7, backend="reference")
    real = ctypes.c_double if case.dtype == "float64" else ctypes.c_float
    fields_5N = np.full((5, case.n_samples), 123, np.float32)
    pred_N = np.full(case.n_samples, 123, np.int32)
    function = getattr(host_twin, f"softmax_stats_{case.dtype}_{variant}")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (logits_NK, labels_N)]
    outputs = [ctypes.c_void_p(array.ctypes.data) for array in (fields_5N, pred_N)]
    shape = ctypes.c_int64(case.n_samples), ctypes.c_int32(case.n_classes)
    function(*pointers, *shape, real(0.7), *outputs)
    assert np.array_equal(pred_N, want.pred_N)
    names = ("loss_N", "gce_N", "margin_N", "p_label_N", "entropy_N")
    for name, got_N in zip(names, fields_5N, strict=True):
        assert_close(name, got_N, getattr(want, name), **TOLERANCE["softmax_stats"]["gpu"])
