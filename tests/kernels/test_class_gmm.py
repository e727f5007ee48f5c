import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve_kernels.class_gmm import PRESETS, ClassStatus, class_gmm, mixture_p_clean
from shardsieve_kernels.testing import (
    GMM_CASES,
    TOLERANCE,
    GmmCase,
    assert_close,
    assert_same_decision,
    gmm_inputs,
    web_sizes,
)

ALL_PRESETS = list(PRESETS)
CASES = {case.name: case for case in GMM_CASES}
COUNTS = ("n_iter_K", "converged_K", "status_K")


@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("case", GMM_CASES, ids=lambda case: case.name)
def test_matches_reference(case, preset, backend):
    losses_N, labels_N = gmm_inputs(case)
    run = {"n_classes": case.n_classes, "preset": preset}
    want = class_gmm(losses_N, labels_N, **run, backend="reference")
    got = class_gmm(losses_N, labels_N, **run, backend=backend)
    assert np.array_equal(got.status_K, want.status_K)
    assert np.array_equal(got.converged_K, want.converged_K)
    # Near the end rounding decides whether a jump is kept, which costs or saves a few maps.
    slack = 12 if PRESETS[preset].accelerate else 0
    assert_close("n_iter_K", got.n_iter_K, want.n_iter_K, rtol=0, atol=slack)
    for field in set(want._fields) - set(COUNTS):
        tolerance = TOLERANCE["class_gmm"][backend]
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)
    assert_same_decision(got.p_clean_N, want.p_clean_N, threshold=0.6, slack=1e-6)


def test_cases_reach_every_status():
    seen = set()
    for case in GMM_CASES:
        fit = class_gmm(*gmm_inputs(case), case.n_classes, backend="cpu")
        seen |= set(fit.status_K.tolist())
    assert seen == set(ClassStatus)


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_a_class_not_fitted_says_so_and_keeps_all(preset, any_backend):
    rng = np.random.default_rng(0)
    outlier = np.append(rng.normal(1, 0.1, 400), 500.0)
    parts = [rng.normal(1, 0.5, 19), np.full(50, 1 / 3), outlier, rng.normal(1, 0.5, 20)]
    labels_N = np.repeat([1, 2, 3, 4], [len(part) for part in parts])
    fit = class_gmm(np.concatenate(parts), labels_N, 5, preset=preset, backend=any_backend)
    assert [ClassStatus(code).name for code in fit.status_K] == [
        "EMPTY", "TOO_FEW", "EQUAL", "COLLAPSED", "FITTED",
    ]  # fmt: skip
    assert (fit.p_clean_N[labels_N < 4] == 1.0).all()
    assert (fit.p_clean_N[labels_N == 4] < 1.0).any()
    for field in ("weights_K2", "means_K2", "variances_K2", "bic_gain_K", "separation_K"):
        values = getattr(fit, field)
        assert np.isnan(values[:4]).all() and np.isfinite(values[4]).all(), field
    assert (fit.n_iter_K > 0).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_the_smallest_component_allowed_is_two_samples_or_one_in_200(preset, any_backend):
    rng = np.random.default_rng(6)
    sizes, outliers = [40, 40, 1000, 1000, 2000, 2000], [1, 2, 4, 5, 9, 10]
    parts = [rng.normal(1.0, 0.1, size) for size in sizes]
    for part, count in zip(parts, outliers, strict=True):
        part[:count] += 100.0
    labels_N = np.repeat(np.arange(6), sizes)
    fit = class_gmm(np.concatenate(parts), labels_N, 6, preset=preset, backend=any_backend)
    assert fit.status_K.tolist() == [ClassStatus.COLLAPSED, ClassStatus.FITTED] * 3


def test_min_samples_moves_the_border(any_backend):
    losses_N, labels_N = gmm_inputs(GmmCase("pair", (30, 31)))
    fit = class_gmm(losses_N, labels_N, 2, min_samples=31, backend=any_backend)
    assert fit.status_K.tolist() == [ClassStatus.TOO_FEW, ClassStatus.FITTED]


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_permuted_samples_give_permuted_bits(preset, backend):
    case = CASES["web"]
    losses_N, labels_N = gmm_inputs(case)
    run = {"n_classes": case.n_classes, "preset": preset}
    order = np.random.default_rng(5).permutation(len(labels_N))
    for name in ("reference", backend):
        first = class_gmm(losses_N, labels_N, **run, backend=name)
        again = class_gmm(losses_N, labels_N, **run, backend=name)
        other = class_gmm(losses_N[order], labels_N[order], **run, backend=name)
        assert other.p_clean_N.tobytes() == first.p_clean_N[order].tobytes()
        for field in first._fields:
            bits = getattr(first, field).tobytes()
            assert getattr(again, field).tobytes() == bits, field
            assert field == "p_clean_N" or getattr(other, field).tobytes() == bits, field


def test_other_classes_do_not_change_a_class(backend):
    losses_N, labels_N = gmm_inputs(CASES["web"])
    alone_N = labels_N == 7
    together = class_gmm(losses_N, labels_N, 60, backend=backend)
    alone = class_gmm(losses_N[alone_N], np.zeros(alone_N.sum(), int), 1, backend=backend)
    assert alone.p_clean_N.tobytes() == together.p_clean_N[alone_N].tobytes()
    assert alone.means_K2[0].tobytes() == together.means_K2[7].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes_and_strides_do_not_matter(dtype, backend):
    losses_N, labels_N = gmm_inputs(CASES["odd-sizes"])
    losses_N = losses_N.astype(np.float16)
    want = class_gmm(losses_N.astype(np.float32), labels_N, 4, backend=backend)
    wide_N = np.repeat(losses_N.astype(dtype), 2)
    got = class_gmm(wide_N[::2], labels_N.astype(np.int64), 4, backend=backend)
    assert got.p_clean_N.tobytes() == want.p_clean_N.tobytes()


@pytest.mark.parametrize("unit", [1e-3, 1e-30, 1e30])
def test_converged_does_not_depend_on_the_unit(unit, any_backend):
    losses_N, labels_N = gmm_inputs(CASES["web"])
    losses_N = losses_N.astype(np.float64)
    first = class_gmm(losses_N, labels_N, 60, backend=any_backend)
    scaled = class_gmm(losses_N * unit, labels_N, 60, backend=any_backend)
    assert_same_decision(scaled.p_clean_N, first.p_clean_N, threshold=0.6, slack=1e-6)
    np.testing.assert_allclose(scaled.p_clean_N, first.p_clean_N, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scaled.means_K2, first.means_K2 * unit, rtol=1e-6)
    np.testing.assert_allclose(scaled.variances_K2, first.variances_K2 * unit**2, rtol=1e-6)
    np.testing.assert_allclose(
        scaled.log_likelihood_K, first.log_likelihood_K - np.log(unit), atol=1e-9
    )
    np.testing.assert_allclose(scaled.bic_gain_K, first.bic_gain_K, rtol=1e-6)


@pytest.mark.parametrize("preset", ALL_PRESETS)
@pytest.mark.parametrize("reg_covar", [0.0, 5e-4, 0.01])
def test_matches_reference_with_added_variance(reg_covar, preset, backend):
    losses_N, labels_N = gmm_inputs(CASES["web"])
    run = {"n_classes": 60, "preset": preset, "reg_covar": reg_covar}
    want = class_gmm(losses_N, labels_N, **run, backend="reference")
    got = class_gmm(losses_N, labels_N, **run, backend=backend)
    assert np.array_equal(got.status_K, want.status_K)
    tolerance = TOLERANCE["class_gmm"][backend]
    for field in ("p_clean_N", "means_K2", "variances_K2", "bic_gain_K", "separation_K"):
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)
    assert_same_decision(got.p_clean_N, want.p_clean_N, threshold=0.6, slack=1e-6)


def test_added_variance_is_a_share_of_the_squared_range(any_backend):
    losses_N, labels_N = gmm_inputs(CASES["odd-sizes"])
    losses_N = losses_N.astype(np.float64)
    fit = class_gmm(losses_N, labels_N, 4, reg_covar=0.01, backend=any_backend)
    scaled = class_gmm(losses_N * 1e-3, labels_N, 4, reg_covar=0.01, backend=any_backend)
    np.testing.assert_allclose(scaled.p_clean_N, fit.p_clean_N, rtol=0, atol=1e-6)
    for label in np.flatnonzero(fit.status_K == ClassStatus.FITTED):
        extent = np.ptp(losses_N[labels_N == label])
        assert fit.variances_K2[label].min() >= 0.01 * extent**2


def test_converged_does_not_depend_on_an_offset(any_backend):
    losses_N, labels_N = gmm_inputs(CASES["odd-sizes"])
    losses_N = losses_N.astype(np.float64)
    first = class_gmm(losses_N, labels_N, 4, backend=any_backend)
    moved = class_gmm(losses_N + 1000.0, labels_N, 4, backend=any_backend)
    np.testing.assert_allclose(moved.p_clean_N, first.p_clean_N, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved.variances_K2, first.variances_K2, rtol=1e-6)


def test_two_clear_modes_are_found(any_backend):
    rng = np.random.default_rng(2)
    noisy_N = rng.random(20_000) < 0.3
    losses_N = np.where(noisy_N, rng.normal(6.0, 0.8, 20_000), rng.normal(1.0, 0.4, 20_000))
    fit = class_gmm(losses_N, np.zeros(20_000, int), 1, backend=any_backend)
    np.testing.assert_allclose(fit.weights_K2[0], [0.7, 0.3], atol=0.01)
    np.testing.assert_allclose(fit.means_K2[0], [1.0, 6.0], atol=0.03)
    np.testing.assert_allclose(fit.variances_K2[0], [0.16, 0.64], atol=0.03)
    assert np.mean((fit.p_clean_N > 0.5) == ~noisy_N) > 0.999
    ashman = 5.0 * np.sqrt(2) / np.sqrt(0.16 + 0.64)
    assert fit.separation_K[0] == pytest.approx(ashman, rel=0.02)
    assert fit.bic_gain_K[0] > 10_000


def test_mirrored_start_is_the_same_on_every_backend(any_backend):
    """A symmetric class has two equally good splits; the lower one must be taken everywhere."""
    # The upper cut is better by less than rounding may hide, so it must not be preferred.
    losses_N = np.repeat([0.0, 1.0, 2.0 + 1e-12], 40)
    fit = class_gmm(
        losses_N, np.zeros(120, int), 1, preset="sklearn-compatible", backend=any_backend
    )
    assert fit.weights_K2[0, 0] < 0.5
    assert (fit.p_clean_N > 0.5).tolist() == [True] * 40 + [False] * 80


def test_components_that_cross_are_named_by_where_they_end(any_backend):
    """A narrow mode inside a wide one; EM takes the lower start to the higher mean here."""
    rng = np.random.default_rng(37)
    size = int(rng.integers(40, 300))
    narrow_N = rng.normal(1, rng.uniform(0.05, 0.3), size)
    wide_N = rng.normal(1 - rng.uniform(0, 0.3), rng.uniform(0.5, 2), size // 2)
    losses_N = 3 - np.concatenate([narrow_N, wide_N])
    fit = class_gmm(losses_N, np.zeros(len(losses_N), int), 1, backend=any_backend)
    assert fit.status_K[0] == ClassStatus.FITTED
    assert fit.means_K2[0, 0] < fit.means_K2[0, 1] - 1e-3


def test_a_hair_below_the_smallest_component_is_enough(any_backend):
    rng = np.random.default_rng(6)
    clean_N = np.clip(rng.normal(1.0, 0.1, 995), 0.7, 1.3)
    losses_N = np.concatenate([clean_N, 1.66 + 0.01 * np.linspace(-1, 1, 5)])
    fit = class_gmm(losses_N, np.zeros(1000, int), 1, backend=any_backend)
    assert 5 * (1 - 1e-6) < 1000 * fit.weights_K2[0, 1] < 5
    assert fit.status_K[0] == ClassStatus.FITTED


def test_a_spike_of_duplicates_keeps_a_finite_likelihood(any_backend):
    rng = np.random.default_rng(4)
    losses_N = np.concatenate([np.zeros(300), rng.normal(3.0, 1.0, 500)])
    fit = class_gmm(losses_N, np.zeros(800, int), 1, backend=any_backend)
    assert fit.status_K[0] == ClassStatus.FITTED
    floor = 1e-6 * losses_N.var()
    assert fit.variances_K2[0, 0] == pytest.approx(floor, rel=1e-6)
    assert np.isfinite(fit.log_likelihood_K[0])
    assert (fit.p_clean_N[:300] > 0.99).all()
    assert (fit.p_clean_N[300:] < 0.5).mean() > 0.99


def one_mode(kind):
    rng = np.random.default_rng(11)
    draw = {"normal": lambda: rng.normal(1.0, 0.1, 1000), "exp": lambda: rng.exponential(0.2, 1000)}
    labels_N = np.repeat(np.arange(20), 1000)
    return class_gmm(np.concatenate([draw[kind]() for _ in range(20)]), labels_N, 20, backend="cpu")


def test_a_normal_class_without_noise_prefers_one_component():
    fit = one_mode("normal")
    fitted_K = fit.status_K == ClassStatus.FITTED
    print("normal: bic gain", fit.bic_gain_K, "separation", fit.separation_K)
    assert fitted_K.sum() >= 15
    assert (fit.bic_gain_K[fitted_K] < 0).all()


def test_a_skewed_class_without_noise_has_a_low_separation():
    """BIC prefers two Gaussians to one here: only the separation tells that there is one mode."""
    fit = one_mode("exp")
    print("exp: bic gain", fit.bic_gain_K, "separation", fit.separation_K)
    assert (fit.separation_K < 2.0).all()
    assert (fit.bic_gain_K > 0).all()
    two_modes = class_gmm(*gmm_inputs(GmmCase("two", (1000,) * 20)), 20, backend="cpu")
    assert np.median(two_modes.separation_K) > 2.0


MIXTURES = {
    "narrow-clean": ([0.6, 0.4], [1.0, 1.6], [0.15**2, 1.2**2]),
    "narrow-noisy": ([0.6, 0.4], [1.0, 1.6], [1.2**2, 0.15**2]),
    "equal-variances": ([0.5, 0.5], [1.0, 3.0], [0.2, 0.2]),
    "equal-means": ([0.5, 0.5], [1.0, 1.0], [0.1, 0.4]),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_monotone_posterior_never_rises_with_the_loss(mixture):
    weights_2, means_2, variances_2 = (np.array(part) for part in mixture)
    x_N = np.linspace(-50, 50, 20_001)
    p_N = mixture_p_clean(x_N, weights_2, means_2, variances_2)
    assert np.diff(p_N).max() <= 1e-12
    plain_N = mixture_p_clean(x_N, weights_2, means_2, variances_2, monotone=False)
    density_2N = np.stack(
        [
            w / np.sqrt(v) * np.exp(-((x_N - m) ** 2) / (2 * v))
            for w, m, v in zip(weights_2, means_2, variances_2, strict=True)
        ]
    )
    total_N = density_2N.sum(axis=0)
    held_N = total_N > 1e-300
    np.testing.assert_allclose(
        plain_N[held_N], (density_2N[0] / np.where(held_N, total_N, 1))[held_N], atol=1e-12
    )
    # Between the means the quadratic does not turn, so nothing is changed there.
    between_N = (x_N >= means_2[0]) & (x_N <= means_2[1])
    np.testing.assert_allclose(p_N[between_N], plain_N[between_N], atol=1e-12)


def test_monotone_matters_where_components_differ_in_width():
    for name in ("narrow-clean", "narrow-noisy"):
        parts = [np.array(part) for part in MIXTURES[name]]
        plain_N = mixture_p_clean(np.linspace(-2, 9, 500), *parts, monotone=False)
        assert np.diff(plain_N).max() > 1e-3, name


@settings(max_examples=40, deadline=None)
@given(
    st.integers(20, 120),
    st.floats(0.05, 0.95),
    st.floats(0.0, 5.0),
    st.floats(0.05, 3.0),
    st.integers(0, 2**31),
)
def test_converged_keeps_a_lower_set_of_losses(size, share, apart, width, seed):
    rng = np.random.default_rng(seed)
    losses_N = np.where(
        rng.random(size) < share, rng.normal(1.0, 0.3, size), rng.normal(1 + apart, width, size)
    )
    labels_N = np.zeros(size, int)
    fit = class_gmm(losses_N, labels_N, 1, backend="cpu")
    p_N = fit.p_clean_N[np.argsort(losses_N)]
    assert ((p_N >= 0) & (p_N <= 1)).all()
    assert np.diff(p_N).max(initial=0) <= 1e-12
    if fit.status_K[0] != ClassStatus.FITTED:
        return
    assert fit.means_K2[0, 0] <= fit.means_K2[0, 1] + 1e-6
    assert fit.weights_K2[0].sum() == pytest.approx(1.0)
    assert fit.weights_K2[0].min() * size >= 2 * (1 - 1e-5)
    again_N = mixture_p_clean(losses_N, fit.weights_K2[0], fit.means_K2[0], fit.variances_K2[0])
    np.testing.assert_allclose(again_N, fit.p_clean_N, atol=1e-10)


def test_more_maps_never_lower_the_likelihood():
    losses_N, labels_N = gmm_inputs(CASES["web"])
    early = class_gmm(losses_N, labels_N, 60, preset="sklearn-compatible", backend="cpu")
    late = class_gmm(losses_N, labels_N, 60, backend="cpu")
    assert late.converged_K.all()
    assert (late.log_likelihood_K >= early.log_likelihood_K - 1e-6).all()
    assert (late.log_likelihood_K > early.log_likelihood_K + 1e-6).mean() > 0.5


def test_the_input_is_left_alone(backend):
    losses_N, labels_N = gmm_inputs(CASES["odd-sizes"])
    losses_N = losses_N.astype(np.float64)
    kept_N, kept_labels_N = losses_N.copy(), labels_N.copy()
    for name in ("reference", backend):
        class_gmm(losses_N, labels_N, 4, backend=name)
        assert np.array_equal(losses_N, kept_N)
        assert np.array_equal(labels_N, kept_labels_N)


def test_web_sizes_are_ragged():
    sizes_K = web_sizes(200, 1000.0)
    assert max(sizes_K) > 5 * min(sizes_K)
    assert 800 < np.mean(sizes_K) < 1200
