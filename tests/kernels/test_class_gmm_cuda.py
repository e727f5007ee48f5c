"""The CUDA code of class_gmm, whole, on the CPU: the host twin plays the threads of its blocks."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve_kernels.class_gmm import PRESETS, ClassStatus, EmSettings, GmmFit, class_gmm
from shardsieve_kernels.testing import (
    GMM_CASES,
    TOLERANCE,
    GmmCase,
    assert_close,
    assert_same_decision,
    gmm_inputs,
)

ALL_PRESETS = list(PRESETS)
CASES = {case.name: case for case in GMM_CASES}
COUNTS = ("n_iter_K", "converged_K", "status_K")


def pointers(*arrays):
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def host_sorted(twin, losses_N, labels_N, n_classes):
    """What gpu.py does before the fit, with the keys of the CUDA code."""
    n = ctypes.c_int64(len(losses_N))
    if losses_N.dtype == np.float64:
        order_N = np.lexsort((losses_N, labels_N))
        return losses_N[order_N], np.searchsorted(labels_N[order_N], np.arange(n_classes + 1))
    keys_N, sorted_N = np.empty(len(losses_N), np.uint64), np.empty(len(losses_N))
    twin.class_gmm_keys(*pointers(losses_N, labels_N), n, *pointers(keys_N))
    keys_N.sort()
    twin.class_gmm_losses(*pointers(keys_N), n, *pointers(sorted_N))
    firsts_K1 = np.arange(n_classes + 1, dtype=np.uint64) << np.uint64(32)
    return sorted_N, np.searchsorted(keys_N, firsts_K1)


def host_fit(twin, losses_N, labels_N, n_classes, preset="converged", n_threads=256):
    """The twin's answer, as gpu.py would put it together."""
    rules: EmSettings = PRESETS[preset]
    sorted_N, starts_K1 = host_sorted(twin, losses_N, labels_N, n_classes)
    n = len(losses_N)
    scratch_N, groups_N = np.empty(n), np.empty(n, np.int32)
    mixture_K6, scores_K3 = np.full((n_classes, 6), 77.0), np.full((n_classes, 3), 77.0)
    curves_K7, n_iter_K = np.full((n_classes, 7), 77.0), np.full(n_classes, 77, np.int32)
    converged_K, status_K = np.ones(n_classes, np.bool_), np.full(n_classes, 77, np.uint8)
    whole = (rules.standardise, rules.accelerate, rules.monotone, 20, rules.max_iter)
    real = (rules.variance_added, rules.variance_floor, rules.likelihood_stop, rules.step_stop)
    twin.class_gmm_fit(
        *pointers(sorted_N, starts_K1),
        *(ctypes.c_int(number) for number in (n_classes, n_threads, *whole)),
        *(ctypes.c_double(number) for number in real),
        *pointers(scratch_N, groups_N, mixture_K6, scores_K3, curves_K7, n_iter_K),
        *pointers(converged_K, status_K),
    )
    p_clean_N = np.full(n, 77.0)
    posterior = getattr(twin, f"class_gmm_posterior_{losses_N.dtype}")
    arguments = pointers(losses_N, labels_N), ctypes.c_int64(n), pointers(curves_K7, p_clean_N)
    posterior(*arguments[0], arguments[1], *arguments[2])
    pairs = (mixture_K6[:, i : i + 2] for i in (0, 2, 4))
    return GmmFit(p_clean_N, *pairs, *scores_K3.T, n_iter_K, converged_K, status_K)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("case", GMM_CASES, ids=lambda case: case.name)
def test_the_twin_matches_the_reference(case, preset, dtype, host_twin):
    losses_N, labels_N = gmm_inputs(case)
    losses_N = losses_N.astype(dtype)
    want = class_gmm(losses_N, labels_N, case.n_classes, preset=preset, backend="reference")
    got = host_fit(host_twin, losses_N, labels_N, case.n_classes, preset)
    assert np.array_equal(got.status_K, want.status_K)
    assert np.array_equal(got.converged_K, want.converged_K)
    slack = 12 if PRESETS[preset].accelerate else 0
    assert_close("n_iter_K", got.n_iter_K, want.n_iter_K, rtol=0, atol=slack)
    for field in set(want._fields) - set(COUNTS):
        tolerance = TOLERANCE["class_gmm"]["gpu"]
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)
    assert_same_decision(got.p_clean_N, want.p_clean_N, threshold=0.6, slack=1e-6)


@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("n_threads", [32, 96, 512])
def test_no_bit_depends_on_the_size_of_a_block(n_threads, preset, host_twin):
    case = GmmCase("mixed", (21, 333, 20_011, 700, 0, 3000))
    losses_N, labels_N = gmm_inputs(case)
    want = host_fit(host_twin, losses_N, labels_N, case.n_classes, preset, n_threads=256)
    got = host_fit(host_twin, losses_N, labels_N, case.n_classes, preset, n_threads=n_threads)
    for field in want._fields:
        assert getattr(got, field).tobytes() == getattr(want, field).tobytes(), field


def test_permuted_samples_give_permuted_bits(host_twin):
    case = CASES["web"]
    losses_N, labels_N = gmm_inputs(case)
    order = np.random.default_rng(5).permutation(len(labels_N))
    want = host_fit(host_twin, losses_N, labels_N, 60)
    got = host_fit(host_twin, losses_N[order].copy(), labels_N[order].copy(), 60)
    assert got.p_clean_N.tobytes() == want.p_clean_N[order].tobytes()
    for field in set(want._fields) - {"p_clean_N"}:
        assert getattr(got, field).tobytes() == getattr(want, field).tobytes(), field


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_large_classes_match_the_cpu(preset, host_twin):
    losses_N, labels_N = gmm_inputs(GmmCase("large", (70_000, 16_384, 16_383)))
    want = class_gmm(losses_N, labels_N, 3, preset=preset, backend="cpu")
    got = host_fit(host_twin, losses_N, labels_N, 3, preset)
    assert want.status_K.tolist() == [ClassStatus.FITTED] * 3
    assert_close("p_clean_N", got.p_clean_N, want.p_clean_N, **TOLERANCE["class_gmm"]["gpu"])
    assert_same_decision(got.p_clean_N, want.p_clean_N, threshold=0.6, slack=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50),
    st.integers(1, 5000),
)
def test_keys_sort_by_class_then_loss(host_twin, losses, n_classes):
    losses_N = np.array(losses, np.float32)
    labels_N = np.random.default_rng(n_classes).integers(0, n_classes, len(losses), dtype=np.int32)
    sorted_N, starts_K1 = host_sorted(host_twin, losses_N, labels_N, n_classes)
    order_N = np.lexsort((losses_N, labels_N))
    assert np.array_equal(sorted_N, losses_N[order_N])
    assert np.array_equal(np.diff(starts_K1), np.bincount(labels_N, minlength=n_classes))
