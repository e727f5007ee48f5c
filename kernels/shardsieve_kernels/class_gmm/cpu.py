"""class_gmm with Numba: classes are sorted and fitted, then come all posteriors.

Threads are Python's and not those of Numba's parallel loops, which on OpenMP keep spinning after
each loop: that cost as much CPU time as a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import get_num_threads, njit

from shardsieve_kernels._vector import exp_nonpositive
from shardsieve_kernels.class_gmm import ClassStatus, EmSettings, GmmFit
from shardsieve_kernels.class_gmm.cpu_em import clean_first, fit, score
from shardsieve_kernels.class_gmm.reference import EQUAL_RANGE, TINY_RANGE, WEIGHT_TIE

# Posteriors are written this many at a time, while their odds are still in the cache.
_BLOCK = 2048
# Samples of one piece of work of a thread, or one class if that has more.
_PIECE = 65_536


def class_gmm(
    losses_N: np.ndarray,
    labels_N: np.ndarray,
    n_classes: int,
    settings: EmSettings,
    min_samples: int,
) -> GmmFit:
    """See `shardsieve_kernels.class_gmm.class_gmm`; checks nothing."""
    # f16 losses are exact in f32, and Numba has no f16 on a CPU.
    dtype = np.float64 if losses_N.dtype == np.float64 else np.float32
    losses_N = np.ascontiguousarray(losses_N, dtype=dtype)
    labels_N = np.ascontiguousarray(labels_N, dtype=np.int32)
    mixture_K6, scores_K3, n_iter_K, converged_K, status_K = _fit_classes(
        losses_N, labels_N, n_classes, settings, min_samples
    )
    curves_K6 = _curves(mixture_K6, settings.monotone)
    p_clean_N = np.empty(len(losses_N))

    def write_posteriors(first: int) -> None:
        rows = slice(first, first + _PIECE)
        _posteriors(losses_N[rows], labels_N[rows], curves_K6, p_clean_N[rows])

    _in_threads(write_posteriors, range(0, len(losses_N), _PIECE))
    return GmmFit(
        p_clean_N=p_clean_N,
        weights_K2=mixture_K6[:, 0:2].copy(),
        means_K2=mixture_K6[:, 2:4].copy(),
        variances_K2=mixture_K6[:, 4:6].copy(),
        log_likelihood_K=scores_K3[:, 0].copy(),
        bic_gain_K=scores_K3[:, 1].copy(),
        separation_K=scores_K3[:, 2].copy(),
        n_iter_K=n_iter_K,
        converged_K=converged_K,
        status_K=status_K,
    )


def _fit_classes(
    losses_N: np.ndarray,
    labels_N: np.ndarray,
    n_classes: int,
    settings: EmSettings,
    min_samples: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mixtures (K, 6), scores (K, 3), maps, whether they converged, and statuses."""
    starts_K = np.zeros(n_classes + 1, np.int64)
    _count(labels_N, starts_K[1:])
    np.cumsum(starts_K, out=starts_K)
    grouped_N = np.empty_like(losses_N)
    _group(losses_N, labels_N, starts_K[:-1].copy(), grouped_N)

    mixture_K6 = np.full((n_classes, 6), np.nan)
    scores_K3 = np.full((n_classes, 3), np.nan)
    n_iter_K = np.zeros(n_classes, np.int32)
    converged_K = np.zeros(n_classes, np.bool_)
    status_K = np.zeros(n_classes, np.uint8)
    # Of the two types one is empty: the fit is then compiled for both at once.
    none = grouped_N[:0]
    both = (grouped_N, none.astype(np.float64))
    if losses_N.dtype == np.float64:
        both = (none.astype(np.float32), grouped_N)

    def fit_some(turn_K: np.ndarray) -> None:
        # NumPy's sort has vector instructions and holds up no thread.
        for start, stop in zip(starts_K[turn_K], starts_K[turn_K + 1], strict=True):
            grouped_N[start:stop].sort()
        _some_classes(
            *both, starts_K, turn_K, settings, min_samples,
            mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
        )  # fmt: skip

    _in_threads(fit_some, _pieces(np.diff(starts_K)))
    return mixture_K6, scores_K3, n_iter_K, converged_K, status_K


@njit(nogil=True, cache=True)
def _count(labels_N, counts_K):  # type: ignore[no-untyped-def]
    for i in range(len(labels_N)):
        counts_K[labels_N[i]] += 1


@njit(nogil=True, cache=True)
def _group(losses_N, labels_N, next_K, grouped_N):  # type: ignore[no-untyped-def]
    for i in range(len(losses_N)):
        label = labels_N[i]
        grouped_N[next_K[label]] = losses_N[i]
        next_K[label] += 1


def _pieces(sizes_K: np.ndarray) -> list[np.ndarray]:
    """Classes in pieces of like many samples, the largest first: a slow one does not start last."""
    turn_K = np.argsort(-sizes_K, kind="stable")
    before_K = np.cumsum(sizes_K[turn_K]) - sizes_K[turn_K]
    return np.split(turn_K, 1 + np.flatnonzero(np.diff(before_K // _PIECE)))


def _in_threads(work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
    n_threads = min(get_num_threads(), len(pieces))
    if n_threads < 2:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(work, pieces):
            pass


@njit(nogil=True, cache=True, error_model="numpy")
def _some_classes(  # type: ignore[no-untyped-def]
    singles_N, doubles_N, starts_K, turn_K, settings, min_samples,
    mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
):  # fmt: skip
    # The first class is the largest one.
    z_N = np.empty(starts_K[turn_K[0] + 1] - starts_K[turn_K[0]])
    for label in turn_K:
        start, size = starts_K[label], starts_K[label + 1] - starts_K[label]
        for i in range(size):
            z_N[i] = singles_N[start + i] if len(singles_N) else doubles_N[start + i]
        status_K[label], n_iter_K[label], converged_K[label] = _one_class(
            z_N[:size], settings, min_samples, mixture_K6[label], scores_K3[label]
        )


@njit(nogil=True, cache=True, error_model="numpy")
def _one_class(z_N, settings, min_samples, mixture_6, scores_3):  # type: ignore[no-untyped-def]
    """Fit the sorted losses of a class, which it overwrites, and write its rows if it can."""
    n = len(z_N)
    if n == 0:
        return ClassStatus.EMPTY.value, 0, False
    if n < min_samples:
        return ClassStatus.TOO_FEW.value, 0, False
    first, last = z_N[0], z_N[-1]
    extent = last - first
    if extent <= max(EQUAL_RANGE * max(abs(first), abs(last)), TINY_RANGE):
        return ClassStatus.EQUAL.value, 0, False

    centre, scale = _centre(z_N, extent)
    unit = scale if settings.standardise else 1.0
    deviation = scale / unit
    if settings.standardise:
        for i in range(n):
            z_N[i] /= unit
        settings = _settings_in_units(settings, extent / unit)

    fitted_6 = np.empty(6)
    n_iter, converged, likelihood = fit(z_N, settings, deviation, fitted_6)
    if min(fitted_6[0], fitted_6[1]) * n < max(2.0, 0.005 * n) * (1 - WEIGHT_TIE):
        return ClassStatus.COLLAPSED.value, n_iter, converged

    clean_first(fitted_6, deviation)
    score(n, likelihood, settings, fitted_6, deviation, unit, scores_3)
    mixture_6[0:2] = fitted_6[0:2]
    mixture_6[2:4] = centre + unit * fitted_6[2:4]
    mixture_6[4:6] = unit * unit * fitted_6[4:6]
    return ClassStatus.FITTED.value, n_iter, converged


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _centre(x_N, extent):  # type: ignore[no-untyped-def]
    """Take the mean away from the values, in place; return it and the standard deviation."""
    n = len(x_N)
    total = second = 0.0
    for i in range(n):
        total += x_N[i]
    centre = total / n
    per_extent = 1 / extent
    for i in range(n):
        z = x_N[i] - centre
        x_N[i] = z
        second += (z * per_extent) * (z * per_extent)
    return centre, extent * math.sqrt(second / n)


@njit(nogil=True, cache=True)
def _settings_in_units(settings, extent):  # type: ignore[no-untyped-def]
    return EmSettings(
        settings.standardise,
        settings.variance_added * extent**2,
        settings.variance_floor,
        settings.accelerate,
        settings.likelihood_stop,
        settings.step_stop,
        settings.max_iter,
        settings.monotone,
    )


def _curves(mixture_K6: np.ndarray, monotone: bool) -> np.ndarray:
    """What the posterior needs of each class, (K, 6): bounds of x, origin, three coefficients.

    The log-odds are a quadratic about the mean of the narrower component: the other one is wide
    seen from there, so that no large terms cancel. The constant of a class that is not fitted is
    infinite, so that every posterior is 1.
    """
    w0, w1, m0, m1, v0, v1 = mixture_K6.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_K = (m0 * v1 - m1 * v0) / (v1 - v0)
        low_K = np.where(monotone & (v1 > v0), vertex_K, -np.inf)
        high_K = np.where(monotone & (v1 < v0), vertex_K, np.inf)
        # The wider component as seen from the narrower one; it takes part with this sign.
        origin_K = np.where(v0 <= v1, m0, m1)
        away_K = origin_K - np.where(v0 <= v1, m1, m0)
        wide_K = np.where(v0 <= v1, 0.5 / v1, -0.5 / v0)
        constant_K = np.log(w0 / w1) - 0.5 * np.log(v0 / v1) + wide_K * away_K * away_K
        bend_K = 0.5 / v1 - 0.5 / v0
    curves_K6 = np.stack([low_K, high_K, origin_K, constant_K, 2 * wide_K * away_K, bend_K], axis=1)
    curves_K6[np.isnan(w0)] = [-np.inf, np.inf, 0.0, np.inf, 0.0, 0.0]
    return curves_K6


@njit(nogil=True, cache=True, error_model="numpy")
def _posteriors(losses_N, labels_N, curves_K6, p_clean_N):  # type: ignore[no-untyped-def]
    for first in range(0, len(losses_N), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(losses_N)))
        _log_odds(losses_N[rows], labels_N[rows], curves_K6, p_clean_N[rows])
        _sigmoid(p_clean_N[rows])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _log_odds(losses_B, labels_B, curves_K6, odds_B):  # type: ignore[no-untyped-def]
    for i in range(len(losses_B)):
        k = labels_B[i]
        x = min(max(np.float64(losses_B[i]), curves_K6[k, 0]), curves_K6[k, 1])
        d = x - curves_K6[k, 2]
        odds_B[i] = curves_K6[k, 3] + d * (curves_K6[k, 4] + d * curves_K6[k, 5])


# In a loop of its own, which LLVM turns into vector instructions.
@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sigmoid(odds_B):  # type: ignore[no-untyped-def]
    for i in range(len(odds_B)):
        odds = odds_B[i]
        small = exp_nonpositive(-abs(odds))
        odds_B[i] = (1.0 if odds >= 0 else small) / (1.0 + small)
