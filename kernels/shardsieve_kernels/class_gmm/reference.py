"""class_gmm in NumPy, float64, a Python loop over the classes: the specification."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shardsieve_kernels.class_gmm import ClassStatus, EmSettings, GmmFit

# Ranges below these are those of one value with rounding: relative to the largest loss, absolute.
EQUAL_RANGE = 1e-6
TINY_RANGE = 1e-100
# As in scikit-learn: keeps an empty component from a division by zero.
EMPTY_GUARD = 10 * np.finfo(np.float64).eps
# Means closer than this many standard deviations of the class are equal: variance names them.
MEAN_TIE = 1e-9
# Splits this close to the best two-means split are as good: the first is taken, however a backend
# rounds its sums.
SPLIT_TIE = 1e-10
# A component this little below the minimum is not below: a few far outliers are a whole number of
# samples, and rounding must not decide whether that is the minimum.
WEIGHT_TIE = 1e-6
# A jump moves no parameter further than this, in standard deviations, nats or log-odds.
JUMP_LIMIT = 1.0


class Mixture(NamedTuple):
    """Two components; in `converged` the unit is the standard deviation of the class."""

    weights_2: np.ndarray
    means_2: np.ndarray
    variances_2: np.ndarray


class Fit(NamedTuple):
    """What EM ended with."""

    mixture: Mixture
    n_iter: int
    converged: bool


def class_gmm(
    losses_N: np.ndarray,
    labels_N: np.ndarray,
    n_classes: int,
    settings: EmSettings,
    min_samples: int,
) -> GmmFit:
    """See `shardsieve_kernels.class_gmm.class_gmm`; checks nothing."""
    losses_N = losses_N.astype(np.float64)
    fit = _unfitted(len(losses_N), n_classes)
    for label in range(n_classes):
        rows = np.flatnonzero(labels_N == label)
        # Sorted, so that sums do not depend on the order in which samples came.
        x_N = np.sort(losses_N[rows])
        status = _status_before_fit(x_N, min_samples)
        if status is ClassStatus.FITTED:
            status = _fit_class(x_N, settings, fit, label)
        fit.status_K[label] = status
        if status is ClassStatus.FITTED:
            mixture = Mixture(fit.weights_K2[label], fit.means_K2[label], fit.variances_K2[label])
            fit.p_clean_N[rows] = posterior(losses_N[rows], mixture, settings.monotone)
    return fit


def _unfitted(n_samples: int, n_classes: int) -> GmmFit:
    return GmmFit(
        p_clean_N=np.ones(n_samples),
        weights_K2=np.full((n_classes, 2), np.nan),
        means_K2=np.full((n_classes, 2), np.nan),
        variances_K2=np.full((n_classes, 2), np.nan),
        log_likelihood_K=np.full(n_classes, np.nan),
        bic_gain_K=np.full(n_classes, np.nan),
        separation_K=np.full(n_classes, np.nan),
        n_iter_K=np.zeros(n_classes, np.int32),
        converged_K=np.zeros(n_classes, np.bool_),
        status_K=np.zeros(n_classes, np.uint8),
    )


def _status_before_fit(x_N: np.ndarray, min_samples: int) -> ClassStatus:
    if len(x_N) == 0:
        return ClassStatus.EMPTY
    if len(x_N) < min_samples:
        return ClassStatus.TOO_FEW
    if x_N[-1] - x_N[0] <= max(EQUAL_RANGE * max(abs(x_N[0]), abs(x_N[-1])), TINY_RANGE):
        return ClassStatus.EQUAL
    return ClassStatus.FITTED


def _fit_class(x_N: np.ndarray, settings: EmSettings, fit: GmmFit, label: int) -> ClassStatus:
    """Fit the sorted losses of one class and write its row of `fit`."""
    n = len(x_N)
    centre = x_N.mean()
    extent = x_N[-1] - x_N[0]
    scale = extent * np.sqrt((((x_N - centre) / extent) ** 2).mean())
    unit = scale if settings.standardise else 1.0
    z_N = (x_N - centre) / unit
    if settings.standardise:
        added = settings.variance_added * (extent / unit) ** 2
        settings = settings._replace(variance_added=added)

    start = _m_step(z_N, _two_means(z_N), settings)
    em = _accelerated if settings.accelerate else _plain
    mixture, n_iter, converged = em(z_N, start, settings)
    fit.n_iter_K[label] = n_iter
    fit.converged_K[label] = converged
    if mixture.weights_2.min() * n < max(2.0, 0.005 * n) * (1 - WEIGHT_TIE):
        return ClassStatus.COLLAPSED

    weights_2, means_2, variances_2 = _clean_first(mixture, scale / unit)
    log_likelihood = _log_likelihood(z_N, Mixture(weights_2, means_2, variances_2))
    one_variance = (scale / unit) ** 2
    one_kept = max(one_variance + settings.variance_added, settings.variance_floor)
    one_likelihood = -0.5 * (np.log(2 * np.pi * one_kept) + one_variance / one_kept)
    fit.weights_K2[label] = weights_2
    fit.means_K2[label] = centre + unit * means_2
    fit.variances_K2[label] = unit**2 * variances_2
    fit.log_likelihood_K[label] = log_likelihood - np.log(unit)
    # The mixture has 5 free parameters, one Gaussian has 2.
    fit.bic_gain_K[label] = 2 * n * (log_likelihood - one_likelihood) - 3 * np.log(n)
    fit.separation_K[label] = abs(means_2[1] - means_2[0]) * np.sqrt(2 / variances_2.sum())
    return ClassStatus.FITTED


def _two_means(z_N: np.ndarray) -> np.ndarray:
    """Responsibilities (2, N), each 0 or 1, of the split with the least sum of squares.

    In one dimension the optimum is a cut of the sorted values, and with their mean at 0 its gain
    over no cut is S^2 n / (s (n - s)), where S is the sum of the s values below the cut.
    """
    n = len(z_N)
    size = np.arange(1, n)
    gain = np.cumsum(z_N)[:-1] ** 2 / (size * (n - size))
    gain[z_N[:-1] == z_N[1:]] = -1.0
    cut = 1 + np.argmax(gain >= gain.max() * (1 - SPLIT_TIE))
    below_N = np.arange(n) < cut
    return np.stack([below_N, ~below_N]).astype(np.float64)


def _m_step(z_N: np.ndarray, resp_2N: np.ndarray, settings: EmSettings) -> Mixture:
    counts_2 = resp_2N.sum(axis=1) + EMPTY_GUARD
    means_2 = (resp_2N * z_N).sum(axis=1) / counts_2
    variances_2 = (resp_2N * (z_N - means_2[:, None]) ** 2).sum(axis=1) / counts_2
    variances_2 = np.maximum(variances_2 + settings.variance_added, settings.variance_floor)
    return Mixture(counts_2 / counts_2.sum(), means_2, variances_2)


def _log_joint(z_N: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Log of weight times density, (2, N): their difference is the log-odds of component 0."""
    weights_2, means_2, variances_2 = mixture
    constant_2 = np.log(weights_2) - 0.5 * np.log(2 * np.pi * variances_2)
    log_joint_2N: np.ndarray = constant_2[:, None] - (z_N - means_2[:, None]) ** 2 / (
        2 * variances_2[:, None]
    )
    return log_joint_2N


def _log_likelihood(z_N: np.ndarray, mixture: Mixture) -> float:
    first_N, second_N = _log_joint(z_N, mixture)
    gap_N = np.abs(first_N - second_N)
    return float((np.maximum(first_N, second_N) + np.log1p(np.exp(-gap_N))).mean())


def _sigmoid(odds_N: np.ndarray) -> np.ndarray:
    small_N = np.exp(-np.abs(odds_N))
    sigmoid_N: np.ndarray = np.where(odds_N >= 0, 1.0, small_N) / (1.0 + small_N)
    return sigmoid_N


def _em_map(z_N: np.ndarray, mixture: Mixture, settings: EmSettings) -> tuple[Mixture, float]:
    """One EM step, and the mean log-likelihood of the mixture it started from."""
    first_N, second_N = _log_joint(z_N, mixture)
    odds_N = first_N - second_N
    resp_2N = np.stack([_sigmoid(odds_N), _sigmoid(-odds_N)])
    return _m_step(z_N, resp_2N, settings), _log_likelihood(z_N, mixture)


def _plain(z_N: np.ndarray, mixture: Mixture, settings: EmSettings) -> Fit:
    """EM as scikit-learn runs it."""
    before = -np.inf
    for n_iter in range(1, settings.max_iter + 1):
        mixture, likelihood = _em_map(z_N, mixture, settings)
        if abs(likelihood - before) < settings.likelihood_stop:
            return Fit(mixture, n_iter, True)
        before = likelihood
    return Fit(mixture, settings.max_iter, False)


def _accelerated(z_N: np.ndarray, mixture: Mixture, settings: EmSettings) -> Fit:
    """EM with SQUAREM jumps; a jump to a lower likelihood than EM has is undone."""
    n_iter = 0
    while n_iter + 3 <= settings.max_iter:
        one, likelihood = _em_map(z_N, mixture, settings)
        two, likelihood_one = _em_map(z_N, one, settings)
        n_iter += 2
        step = np.abs(_free(one) - _free(mixture)).max()
        gained = likelihood_one - likelihood
        if gained <= settings.likelihood_stop and step <= settings.step_stop:
            return Fit(two, n_iter, True)
        landed, likelihood_jump = _em_map(z_N, _jump(mixture, one, two, settings), settings)
        n_iter += 1
        mixture = landed if likelihood_jump >= likelihood_one else two
    return Fit(mixture, n_iter, False)


def _free(mixture: Mixture) -> np.ndarray:
    """The mixture as five numbers that may take any value."""
    weights_2, means_2, variances_2 = mixture
    return np.array([np.log(weights_2[0] / weights_2[1]), *means_2, *np.log(variances_2)])


def _jump(mixture: Mixture, one: Mixture, two: Mixture, settings: EmSettings) -> Mixture:
    """Extrapolate two EM steps, not further than JUMP_LIMIT from where they led."""
    start, middle, end = _free(mixture), _free(one), _free(two)
    step = middle - start
    bend = end - middle - step
    curved = float(np.sqrt((bend**2).sum()))
    length = max(float(np.sqrt((step**2).sum())) / curved, 1.0) if curved > 0 else 1.0
    beyond = start + 2 * length * step + length**2 * bend - end
    beyond *= min(1.0, JUMP_LIMIT / max(float(np.abs(beyond).max()), 1e-300))
    odds, *rest = end + beyond
    weight = 1 / (1 + np.exp(-odds))
    return Mixture(
        np.array([weight, 1 / (1 + np.exp(odds))]),
        np.array(rest[:2]),
        np.maximum(np.exp(rest[2:]), settings.variance_floor),
    )


def _clean_first(mixture: Mixture, deviation: float) -> Mixture:
    """Order by mean; equal means by variance, then the larger weight first."""
    weights_2, means_2, variances_2 = mixture
    if abs(means_2[0] - means_2[1]) > MEAN_TIE * deviation:
        swap = means_2[0] > means_2[1]
    elif variances_2[0] != variances_2[1]:
        swap = variances_2[0] > variances_2[1]
    else:
        swap = weights_2[0] < weights_2[1]
    order = [1, 0] if swap else [0, 1]
    return Mixture(weights_2[order], means_2[order], variances_2[order])


def posterior(x_N: np.ndarray, mixture: Mixture, monotone: bool) -> np.ndarray:
    """Posterior of component 0, (N,); the mixture is in the unit of x_N.

    The log-odds are a quadratic in x. With unequal variances they turn at its vertex: below a
    narrow clean component they would fall again, above a narrow noisy one rise again. `monotone`
    holds them at the vertex's value there.
    """
    _, means_2, variances_2 = mixture
    spread = variances_2[1] - variances_2[0]
    if monotone and spread != 0:
        vertex = (means_2[0] * variances_2[1] - means_2[1] * variances_2[0]) / spread
        x_N = np.maximum(x_N, vertex) if spread > 0 else np.minimum(x_N, vertex)
    first_N, second_N = _log_joint(x_N, mixture)
    return _sigmoid(first_N - second_N)
