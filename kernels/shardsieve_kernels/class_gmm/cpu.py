"""class_gmm with Numba: classes are sorted, then fitted in parallel, then come all posteriors."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import get_num_threads, njit, parallel_chunksize, prange

from shardsieve_kernels._vector import exp_nonpositive
from shardsieve_kernels.class_gmm import ClassStatus, EmSettings, GmmFit
from shardsieve_kernels.class_gmm.cpu_em import clean_first, fit, score
from shardsieve_kernels.class_gmm.reference import EQUAL_RANGE, TINY_RANGE, WEIGHT_TIE

# Posteriors are written this many at a time, while their odds are still in the cache.
_BLOCK = 2048


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
    starts_K = np.zeros(n_classes + 1, np.int64)
    _count(labels_N, starts_K[1:])
    np.cumsum(starts_K, out=starts_K)
    grouped_N = np.empty_like(losses_N)
    _group(losses_N, labels_N, starts_K[:-1].copy(), grouped_N)
    _sort_groups(grouped_N, starts_K)

    mixture_K6 = np.full((n_classes, 6), np.nan)
    scores_K3 = np.full((n_classes, 3), np.nan)
    n_iter_K = np.zeros(n_classes, np.int32)
    converged_K = np.zeros(n_classes, np.bool_)
    status_K = np.zeros(n_classes, np.uint8)
    # The largest class first and one class at a time: a slow one does not start last.
    turn_K = np.argsort(-np.diff(starts_K), kind="stable")
    # Of the two types one is empty: the fit is then compiled for both at once.
    none = grouped_N[:0]
    both = (grouped_N, none.astype(np.float64))
    if dtype == np.float64:
        both = (none.astype(np.float32), grouped_N)
    with parallel_chunksize(1):
        _all_classes(
            *both, starts_K, turn_K, settings, min_samples,
            mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
        )  # fmt: skip
    del grouped_N, both
    p_clean_N = np.empty(len(losses_N))
    _all_posteriors(losses_N, labels_N, _curves(mixture_K6, settings.monotone), p_clean_N)
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


def _sort_groups(grouped_N: np.ndarray, starts_K: np.ndarray) -> None:
    """Sort each class with NumPy, whose sort has vector instructions and holds up no thread."""

    def sort(classes: range) -> None:
        for label in classes:
            grouped_N[starts_K[label] : starts_K[label + 1]].sort()

    n_threads = get_num_threads()
    n_classes = len(starts_K) - 1
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(sort, (range(i, n_classes, n_threads) for i in range(n_threads))))


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_classes(  # type: ignore[no-untyped-def]
    singles_N, doubles_N, starts_K, turn_K, settings, min_samples,
    mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
):  # fmt: skip
    for turn in prange(len(turn_K)):
        label = turn_K[turn]
        status_K[label], n_iter_K[label], converged_K[label] = _one_class(
            _of_class(singles_N, doubles_N, starts_K[label], starts_K[label + 1]),
            settings,
            min_samples,
            mixture_K6[label],
            scores_K3[label],
        )


@njit(nogil=True, cache=True)
def _of_class(singles_N, doubles_N, start, stop):  # type: ignore[no-untyped-def]
    if len(singles_N):
        return singles_N[start:stop].astype(np.float64)
    return doubles_N[start:stop].copy()


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

    centre, scale = _centre_and_scale(z_N, extent)
    unit = scale if settings.standardise else 1.0
    deviation = scale / unit
    for i in range(n):
        z_N[i] = (z_N[i] - centre) / unit
    if settings.standardise:
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
def _centre_and_scale(x_N, extent):  # type: ignore[no-untyped-def]
    n = len(x_N)
    total = second = 0.0
    for i in range(n):
        total += x_N[i]
    centre = total / n
    per_extent = 1 / extent
    for i in range(n):
        d = (x_N[i] - centre) * per_extent
        second += d * d
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
    """What the posterior needs of each class, (K, 7): bounds of x, constant, means, 1 / 2v.

    The constant of a class that is not fitted is infinite, so that every posterior is 1.
    """
    w0, w1, m0, m1, v0, v1 = mixture_K6.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_K = (m0 * v1 - m1 * v0) / (v1 - v0)
        low_K = np.where(monotone & (v1 > v0), vertex_K, -np.inf)
        high_K = np.where(monotone & (v1 < v0), vertex_K, np.inf)
        constant_K = np.log(w0 / w1) - 0.5 * np.log(v0 / v1)
    curves_K7 = np.stack([low_K, high_K, constant_K, m0, m1, 0.5 / v0, 0.5 / v1], axis=1)
    curves_K7[np.isnan(w0)] = [-np.inf, np.inf, np.inf, 0.0, 0.0, 0.0, 0.0]
    return curves_K7


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_posteriors(losses_N, labels_N, curves_K7, p_clean_N):  # type: ignore[no-untyped-def]
    n_blocks = (len(losses_N) + _BLOCK - 1) // _BLOCK
    for block in prange(n_blocks):
        rows = slice(block * _BLOCK, min((block + 1) * _BLOCK, len(losses_N)))
        _log_odds(losses_N[rows], labels_N[rows], curves_K7, p_clean_N[rows])
        _sigmoid(p_clean_N[rows])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _log_odds(losses_B, labels_B, curves_K7, odds_B):  # type: ignore[no-untyped-def]
    for i in range(len(losses_B)):
        k = labels_B[i]
        x = min(max(np.float64(losses_B[i]), curves_K7[k, 0]), curves_K7[k, 1])
        d0, d1 = x - curves_K7[k, 3], x - curves_K7[k, 4]
        odds_B[i] = curves_K7[k, 2] - curves_K7[k, 5] * d0 * d0 + curves_K7[k, 6] * d1 * d1


# In a loop of its own, which LLVM turns into vector instructions.
@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sigmoid(odds_B):  # type: ignore[no-untyped-def]
    for i in range(len(odds_B)):
        odds = odds_B[i]
        small = exp_nonpositive(-abs(odds))
        odds_B[i] = (1.0 if odds >= 0 else small) / (1.0 + small)
