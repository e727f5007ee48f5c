"""class_gmm against scikit-learn's mixture, class by class, from the same start."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from shardsieve_kernels.class_gmm import ClassStatus, class_gmm
from shardsieve_kernels.class_gmm.reference import _two_means
from shardsieve_kernels.testing import GmmCase, assert_same_decision, gmm_inputs, web_sizes

TAU = 0.6


def two_means_m_step(x_N, reg_covar):
    """The start, found by trying every cut of the sorted losses."""
    x_N = np.sort(x_N)
    size = np.arange(1, len(x_N))
    low, high = np.cumsum(x_N)[:-1], np.cumsum(x_N[::-1])[::-1][1:]
    cut = 1 + np.argmax(low**2 / size + high**2 / (len(x_N) - size))
    parts = x_N[:cut], x_N[cut:]
    return {
        "weights_init": [len(part) / len(x_N) for part in parts],
        "means_init": [[part.mean()] for part in parts],
        "precisions_init": [[[1 / (part.var() + reg_covar)]] for part in parts],
    }


def sklearn_p_clean(x_N, *, reg_covar=1e-6, **options):
    mixture = GaussianMixture(
        2, reg_covar=reg_covar, **two_means_m_step(x_N, reg_covar), **options
    ).fit(x_N[:, None])
    clean = int(np.argmin(mixture.means_))
    return mixture.predict_proba(x_N[:, None])[:, clean], mixture, clean


@pytest.mark.parametrize("kind", ["two-modes", "atoms", "one-mode"])
def test_compatible_preset_decides_as_sklearn(kind, any_backend):
    case = GmmCase(kind, web_sizes(60, 800.0), kind=kind)
    losses_N, labels_N = gmm_inputs(case)
    fit = class_gmm(losses_N, labels_N, 60, preset="sklearn-compatible", backend=any_backend)
    assert (fit.status_K == ClassStatus.FITTED).all()
    want_N = np.empty(len(losses_N))
    for label in range(60):
        rows = np.flatnonzero(labels_N == label)
        x_N = losses_N[rows].astype(np.float64)
        want_N[rows], mixture, clean = sklearn_p_clean(x_N, tol=1e-3, max_iter=100)
        assert fit.n_iter_K[label] == mixture.n_iter_
        assert fit.converged_K[label] == mixture.converged_
        assert fit.means_K2[label, 0] == pytest.approx(mixture.means_[clean, 0], rel=1e-8)
        assert fit.log_likelihood_K[label] == pytest.approx(mixture.score(x_N[:, None]), abs=1e-9)
    assert 0.1 < np.mean(want_N > TAU) < 0.95
    assert_same_decision(fit.p_clean_N, want_N, threshold=TAU, slack=1e-6)
    np.testing.assert_allclose(fit.p_clean_N, want_N, rtol=0, atol=1e-7)


def test_converged_preset_is_where_sklearn_ends_when_it_runs_on(any_backend):
    """On well separated classes: the noisy losses lie far above the clean ones."""
    rng = np.random.default_rng(8)
    sizes_K = web_sizes(12, 500.0)
    labels_N = np.repeat(np.arange(12), sizes_K)
    noisy_N = rng.random(len(labels_N)) < 0.35
    losses_N = np.where(noisy_N, rng.normal(6, 0.7, noisy_N.size), rng.normal(1, 0.6, noisy_N.size))
    fit = class_gmm(losses_N, labels_N, 12, backend=any_backend)
    assert fit.converged_K.all()
    for label in range(12):
        rows = np.flatnonzero(labels_N == label)
        # No regularisation and a unit variance: the same problem as class_gmm solves.
        x_N = (losses_N[rows] - losses_N[rows].mean()) / losses_N[rows].std()
        want_N, mixture, clean = sklearn_p_clean(x_N, reg_covar=0.0, tol=1e-13, max_iter=5000)
        # Below the clean mean sklearn may call a lower loss less clean; class_gmm does not.
        risen_N = x_N > mixture.means_[clean, 0]
        np.testing.assert_allclose(fit.p_clean_N[rows][risen_N], want_N[risen_N], rtol=0, atol=1e-5)
        assert fit.weights_K2[label, 0] == pytest.approx(mixture.weights_[clean], abs=1e-5)
        want_D = abs(np.diff(mixture.means_[:, 0])[0]) * np.sqrt(2 / mixture.covariances_.sum())
        assert fit.separation_K[label] == pytest.approx(want_D, rel=1e-4)
        one = GaussianMixture(1, reg_covar=0.0).fit(x_N[:, None])
        want_gain = one.bic(x_N[:, None]) - mixture.bic(x_N[:, None])
        assert fit.bic_gain_K[label] == pytest.approx(want_gain, abs=1e-4)


def test_the_start_is_no_worse_than_the_best_of_many_kmeans():
    losses_N, labels_N = gmm_inputs(GmmCase("web", web_sizes(10, 300.0)))
    for label in range(10):
        x_N = np.sort(losses_N[labels_N == label].astype(np.float64))
        below_N = _two_means(x_N - x_N.mean())[0] == 1
        ours = sum(((part - part.mean()) ** 2).sum() for part in (x_N[below_N], x_N[~below_N]))
        kmeans = KMeans(2, n_init=10, random_state=0).fit(x_N[:, None])
        assert ours <= kmeans.inertia_ * (1 + 1e-9)


def test_added_variance_is_that_of_sklearn_on_losses_scaled_to_0_1(any_backend):
    # What DivideMix and the code of TURN's first author do: scale each class, add 5e-4.
    losses_N, labels_N = gmm_inputs(GmmCase("two-modes", web_sizes(12, 800.0), kind="two-modes"))
    fit = class_gmm(losses_N, labels_N, 12, reg_covar=5e-4, backend=any_backend)
    for label in range(12):
        rows = np.flatnonzero(labels_N == label)
        x_N = losses_N[rows].astype(np.float64)
        x_N = (x_N - x_N.min()) / np.ptp(x_N)
        want_N, mixture, _ = sklearn_p_clean(x_N, reg_covar=5e-4, tol=1e-13, max_iter=5000)
        assert mixture.converged_
        # Our posterior is held beyond the vertex; in between it is sklearn's.
        inside = np.abs(fit.p_clean_N[rows] - want_N) < 1e-5
        held = fit.p_clean_N[rows] >= want_N.max() - 1e-5
        assert (inside | held).all()
        assert_same_decision(fit.p_clean_N[rows][~held], want_N[~held], threshold=TAU, slack=1e-5)
        assert (~held).sum() > 0.1 * len(rows)


@pytest.mark.slow
def test_no_decision_differs_on_a_million_samples(backend):
    losses_N, labels_N = gmm_inputs(GmmCase("million", web_sizes(1000, 1050.0)))
    assert len(losses_N) > 1_000_000
    fit = class_gmm(losses_N, labels_N, 1000, preset="sklearn-compatible", backend=backend)
    assert (fit.status_K == ClassStatus.FITTED).all()
    want_N = np.empty(len(losses_N))
    groups = np.split(np.argsort(labels_N, kind="stable"), np.cumsum(np.bincount(labels_N))[:-1])
    # The thread pools of BLAS cost more than what they share out here.
    with threadpool_limits(1):
        for label, rows in enumerate(groups):
            x_N = losses_N[rows].astype(np.float64)
            want_N[rows], mixture, _ = sklearn_p_clean(x_N, tol=1e-3, max_iter=100)
            assert fit.n_iter_K[label] == mixture.n_iter_
    assert 0.3 < np.mean(want_N > TAU) < 0.8
    assert_same_decision(fit.p_clean_N, want_N, threshold=TAU, slack=1e-6)
    np.testing.assert_allclose(fit.p_clean_N, want_N, rtol=0, atol=1e-7)
