"""class_gmm on every backend against the reference, on classes that hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardsieve_kernels.class_gmm import PRESETS, ClassStatus, class_gmm
from shardsieve_kernels.testing import (
    TOLERANCE,
    GmmCase,
    assert_close,
    assert_same_decision,
    gmm_inputs,
)

# The backend is the same for all examples of a test; the examples are the same on every run.
same_backend = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
cases = st.builds(
    GmmCase,
    st.just("made-up"),
    st.lists(st.integers(0, 90) | st.integers(500, 700), min_size=1, max_size=6).map(tuple),
    st.sampled_from(["two-modes", "one-mode", "atoms", "equal", "outlier"]),
)


@same_backend
@given(
    case=cases.filter(lambda case: case.kind != "outlier" or min(case.sizes_K) > 0),
    preset=st.sampled_from(list(PRESETS)),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    min_samples=st.integers(2, 30),
    seed=st.integers(0, 2**31),
)
def test_matches_reference(backend, case, preset, dtype, min_samples, seed):
    losses_N, labels_N = gmm_inputs(case, seed)
    losses_N = losses_N.astype(dtype)
    run = {"n_classes": case.n_classes, "preset": preset, "min_samples": min_samples}
    want = class_gmm(losses_N, labels_N, **run, backend="reference")
    got = class_gmm(losses_N, labels_N, **run, backend=backend)
    tolerance = TOLERANCE["class_gmm"][backend]
    assert np.array_equal(got.status_K, want.status_K)
    assert_close("log_likelihood_K", got.log_likelihood_K, want.log_likelihood_K, **tolerance)
    # Where EM ran out of maps on a likelihood that is all but flat, rounding moves the rest.
    stood_K = want.converged_K | (want.status_K != ClassStatus.FITTED)
    stood_N = stood_K[labels_N]
    assert_close("p_clean_N", got.p_clean_N[stood_N], want.p_clean_N[stood_N], **tolerance)
    assert_same_decision(got.p_clean_N[stood_N], want.p_clean_N[stood_N], threshold=0.6, slack=1e-6)
    for field in ("weights_K2", "means_K2", "variances_K2", "bic_gain_K", "separation_K"):
        assert_close(
            field, getattr(got, field)[stood_K], getattr(want, field)[stood_K], **tolerance
        )


@same_backend
@given(case=cases, preset=st.sampled_from(list(PRESETS)), seed=st.integers(0, 2**31))
def test_order_and_repetition_change_no_bit(backend, case, preset, seed):
    if case.kind == "outlier" and min(case.sizes_K) == 0:
        case = GmmCase(case.name, case.sizes_K)
    losses_N, labels_N = gmm_inputs(case, seed)
    order = np.random.default_rng(seed).permutation(len(labels_N))
    run = {"n_classes": case.n_classes, "preset": preset, "backend": backend}
    first = class_gmm(losses_N, labels_N, **run)
    again = class_gmm(losses_N, labels_N, **run)
    other = class_gmm(losses_N[order], labels_N[order], **run)
    assert other.p_clean_N.tobytes() == first.p_clean_N[order].tobytes()
    for field in first._fields:
        bits = getattr(first, field).tobytes()
        assert getattr(again, field).tobytes() == bits, field
        assert field == "p_clean_N" or getattr(other, field).tobytes() == bits, field


@same_backend
@given(case=cases.filter(lambda case: case.kind == "two-modes"), seed=st.integers(0, 2**31))
def test_f32_losses_are_those_of_f64(backend, case, seed):
    losses_N, labels_N = gmm_inputs(case, seed)
    narrow = class_gmm(losses_N, labels_N, case.n_classes, backend=backend)
    wide = class_gmm(losses_N.astype(np.float64), labels_N, case.n_classes, backend=backend)
    for field in narrow._fields:
        assert getattr(wide, field).tobytes() == getattr(narrow, field).tobytes(), field


@same_backend
@given(
    size=st.integers(1, 40), bad=st.sampled_from([np.nan, np.inf, -np.inf, 1e101]), data=st.data()
)
def test_a_loss_that_is_no_number_is_refused_alike(any_backend, size, bad, data):
    losses_N = np.ones(size)
    row = data.draw(st.integers(0, size - 1))
    losses_N[row] = bad
    with pytest.raises(ValueError, match=rf"losses_N must be finite.* at row {row} \(1 such rows"):
        class_gmm(losses_N, np.zeros(size, np.int32), 1, backend=any_backend)
