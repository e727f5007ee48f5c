"""class_gmm with Numba: classes in parallel, float64, one pass over a class per EM map.

The algorithm is that of reference.py. A mixture is six numbers here:
weight 0, weight 1, mean 0, mean 1, variance 0, variance 1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, parallel_chunksize, prange

from shardsieve_kernels.class_gmm import ClassStatus, EmSettings, GmmFit
from shardsieve_kernels.class_gmm.reference import (
    EMPTY_GUARD,
    EQUAL_RANGE,
    JUMP_LIMIT,
    MEAN_TIE,
    SPLIT_TIE,
    TINY_RANGE,
    WEIGHT_TIE,
)

# Factors of the likelihood lie in (1, 2]: a product of this many stays far inside float64, and
# one logarithm does for all of them.
_PRODUCT_LENGTH = 256
# Reassociation lets LLVM sum in vector lanes. Nothing here supposes that NaN does not occur.
_SUMS = {"reassoc", "contract", "arcp", "nsz"}
_LN_2 = math.log(2)


def class_gmm(
    losses_N: np.ndarray,
    labels_N: np.ndarray,
    n_classes: int,
    settings: EmSettings,
    min_samples: int,
) -> GmmFit:
    """See `shardsieve_kernels.class_gmm.class_gmm`; checks nothing."""
    losses_N = np.ascontiguousarray(losses_N, dtype=np.float64)
    labels_N = np.ascontiguousarray(labels_N, dtype=np.int32)
    counts_K = np.bincount(labels_N, minlength=n_classes)
    starts_K = np.concatenate([[0], np.cumsum(counts_K)])
    grouped_N = np.empty_like(losses_N)
    _group(losses_N, labels_N, starts_K[:-1].copy(), grouped_N)

    mixture_K6 = np.full((n_classes, 6), np.nan)
    scores_K3 = np.full((n_classes, 3), np.nan)
    n_iter_K = np.zeros(n_classes, np.int32)
    converged_K = np.zeros(n_classes, np.bool_)
    status_K = np.zeros(n_classes, np.uint8)
    # The largest class first and one class at a time: a slow one does not start last.
    turn_K = np.argsort(-counts_K, kind="stable")
    with parallel_chunksize(1):
        _all_classes(
            grouped_N, starts_K, turn_K, settings, min_samples,
            mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
        )  # fmt: skip
    # The groups are done with, and their memory takes the posteriors.
    _all_posteriors(losses_N, labels_N, _curves(mixture_K6, settings.monotone), grouped_N)
    return GmmFit(
        p_clean_N=grouped_N,
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
def _group(losses_N, labels_N, next_K, grouped_N):  # type: ignore[no-untyped-def]
    for i in range(len(losses_N)):
        label = labels_N[i]
        grouped_N[next_K[label]] = losses_N[i]
        next_K[label] += 1


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_classes(  # type: ignore[no-untyped-def]
    grouped_N, starts_K, turn_K, settings, min_samples,
    mixture_K6, scores_K3, n_iter_K, converged_K, status_K,
):  # fmt: skip
    for turn in prange(len(turn_K)):
        label = turn_K[turn]
        status_K[label], n_iter_K[label], converged_K[label] = _one_class(
            grouped_N[starts_K[label] : starts_K[label + 1]],
            settings,
            min_samples,
            mixture_K6[label],
            scores_K3[label],
        )


@njit(nogil=True, cache=True, error_model="numpy")
def _one_class(x_N, settings, min_samples, mixture_6, scores_3):  # type: ignore[no-untyped-def]
    """Sort the losses of a class, fit them in place and write its rows, if it can be fitted."""
    n = len(x_N)
    if n == 0:
        return ClassStatus.EMPTY.value, 0, False
    if n < min_samples:
        return ClassStatus.TOO_FEW.value, 0, False
    x_N.sort()
    extent = x_N[-1] - x_N[0]
    if extent <= max(EQUAL_RANGE * max(abs(x_N[0]), abs(x_N[-1])), TINY_RANGE):
        return ClassStatus.EQUAL.value, 0, False

    centre = x_N.sum() / n
    scale = extent * math.sqrt((((x_N - centre) / extent) ** 2).sum() / n)
    unit = scale if settings.standardise else 1.0
    x_N[:] = (x_N - centre) / unit
    if settings.standardise:
        settings = _in_units(settings, extent / unit)

    fitted_6 = np.empty(6)
    _start(x_N, settings, fitted_6)
    if settings.accelerate:
        n_iter, converged = _accelerated(x_N, settings, fitted_6)
    else:
        n_iter, converged = _plain(x_N, settings, fitted_6)
    if min(fitted_6[0], fitted_6[1]) * n < max(2.0, 0.005 * n) * (1 - WEIGHT_TIE):
        return ClassStatus.COLLAPSED.value, n_iter, converged

    deviation = scale / unit
    _clean_first(fitted_6, deviation)
    _score(x_N, settings, fitted_6, deviation, unit, scores_3)
    mixture_6[0:2] = fitted_6[0:2]
    mixture_6[2:4] = centre + unit * fitted_6[2:4]
    mixture_6[4:6] = unit * unit * fitted_6[4:6]
    return ClassStatus.FITTED.value, n_iter, converged


@njit(nogil=True, cache=True)
def _in_units(settings, extent):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True, error_model="numpy")
def _start(z_N, settings, out_6):  # type: ignore[no-untyped-def]
    """M step from the exact two-means split of the sorted values."""
    n = len(z_N)
    # Found twice, so that any split within SPLIT_TIE of the best can be the first one.
    best = -1.0
    for attempt in range(2):
        total = 0.0
        cut = 1
        for size in range(1, n):
            total += z_N[size - 1]
            gain = total * total / (size * (n - size))
            if z_N[size - 1] == z_N[size]:
                continue
            if attempt == 0:
                best = max(best, gain)
            elif gain >= best * (1 - SPLIT_TIE):
                cut = size
                break
    for part in range(2):
        z_part = z_N[:cut] if part == 0 else z_N[cut:]
        count = len(z_part) + EMPTY_GUARD
        mean = z_part.sum() / count
        out_6[part] = count / (n + 2 * EMPTY_GUARD)
        out_6[2 + part] = mean
        out_6[4 + part] = _kept_variance(((z_part - mean) ** 2).sum() / count, settings)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _exp_minus(a):  # type: ignore[no-untyped-def]
    """exp(-a) for a >= 0, in a form that LLVM can turn into vector instructions."""
    # 700 keeps the power of two a normal number.
    a = min(a, 700.0)
    k = math.floor(a / _LN_2 + 0.5)
    f = k * _LN_2 - a
    # The Taylor series, |f| <= log(2) / 2.
    p = 1 / 6227020800
    p = p * f + 1 / 479001600
    p = p * f + 1 / 39916800
    p = p * f + 1 / 3628800
    p = p * f + 1 / 362880
    p = p * f + 1 / 40320
    p = p * f + 1 / 5040
    p = p * f + 1 / 720
    p = p * f + 1 / 120
    p = p * f + 1 / 24
    p = p * f + 1 / 6
    p = p * f + 1 / 2
    p = 1 + f * (1 + f * p)
    # 2^-k, by its exponent bits.
    return p * np.int64(np.int64(1023 - np.int32(k)) << 52).view(np.float64)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _em_map(z_N, mixture_6, settings, out_6):  # type: ignore[no-untyped-def]
    """Write one EM step to out_6; return the mean log-likelihood of the mixture before it."""
    n = len(z_N)
    w0, w1, m0, m1, v0, v1 = mixture_6
    c0 = math.log(w0) - 0.5 * math.log(2 * math.pi * v0)
    c1 = math.log(w1) - 0.5 * math.log(2 * math.pi * v1)
    h0, h1 = 0.5 / v0, 0.5 / v1
    n0 = n1 = first0 = first1 = second0 = second1 = likelihood = 0.0
    for block in range(0, n, _PRODUCT_LENGTH):
        product = 1.0
        for i in range(block, min(block + _PRODUCT_LENGTH, n)):
            # Sums are taken about the old means: near the new ones, so that no digits are lost.
            d0 = z_N[i] - m0
            d1 = z_N[i] - m1
            q0 = d0 * d0
            q1 = d1 * d1
            j0 = c0 - h0 * q0
            j1 = c1 - h1 * q1
            first_larger = j0 >= j1
            small = _exp_minus(abs(j0 - j1))
            larger = 1.0 / (1.0 + small)
            smaller = small * larger
            r0 = larger if first_larger else smaller
            r1 = smaller if first_larger else larger
            likelihood += j0 if first_larger else j1
            product *= 1.0 + small
            n0 += r0
            n1 += r1
            first0 += r0 * d0
            first1 += r1 * d1
            second0 += r0 * q0
            second1 += r1 * q1
        likelihood += math.log(product)
    n0 += EMPTY_GUARD
    n1 += EMPTY_GUARD
    s0, s1 = first0 / n0, first1 / n1
    out_6[0] = n0 / (n0 + n1)
    out_6[1] = n1 / (n0 + n1)
    out_6[2] = m0 + s0
    out_6[3] = m1 + s1
    out_6[4] = _kept_variance(second0 / n0 - s0 * s0, settings)
    out_6[5] = _kept_variance(second1 / n1 - s1 * s1, settings)
    return likelihood / n


@njit(nogil=True, cache=True, error_model="numpy")
def _kept_variance(variance, settings):  # type: ignore[no-untyped-def]
    return max(max(variance, 0.0) + settings.variance_added, settings.variance_floor)


@njit(nogil=True, cache=True, error_model="numpy")
def _plain(z_N, settings, mixture_6):  # type: ignore[no-untyped-def]
    before = -np.inf
    for n_iter in range(1, settings.max_iter + 1):
        likelihood = _em_map(z_N, mixture_6, settings, mixture_6)
        if abs(likelihood - before) < settings.likelihood_stop:
            return n_iter, True
        before = likelihood
    return settings.max_iter, False


@njit(nogil=True, cache=True, error_model="numpy")
def _accelerated(z_N, settings, mixture_6):  # type: ignore[no-untyped-def]
    one_6, two_6, landed_6 = np.empty(6), np.empty(6), np.empty(6)
    n_iter = 0
    while n_iter + 3 <= settings.max_iter:
        likelihood = _em_map(z_N, mixture_6, settings, one_6)
        likelihood_one = _em_map(z_N, one_6, settings, two_6)
        n_iter += 2
        start_5, middle_5 = _free(mixture_6), _free(one_6)
        step = np.abs(middle_5 - start_5).max()
        gained = likelihood_one - likelihood
        mixture_6[:] = two_6
        if gained <= settings.likelihood_stop and step <= settings.step_stop:
            return n_iter, True
        jump_6 = _jump(start_5, middle_5, _free(two_6), settings.variance_floor)
        likelihood_jump = _em_map(z_N, jump_6, settings, landed_6)
        n_iter += 1
        if likelihood_jump >= likelihood_one:
            mixture_6[:] = landed_6
    return n_iter, False


@njit(nogil=True, cache=True, error_model="numpy")
def _free(mixture_6):  # type: ignore[no-untyped-def]
    w0, w1, m0, m1, v0, v1 = mixture_6
    return np.array([math.log(w0 / w1), m0, m1, math.log(v0), math.log(v1)])


@njit(nogil=True, cache=True, error_model="numpy")
def _jump(start_5, middle_5, end_5, floor):  # type: ignore[no-untyped-def]
    step_5 = middle_5 - start_5
    bend_5 = end_5 - middle_5 - step_5
    curved = math.sqrt((bend_5**2).sum())
    length = max(math.sqrt((step_5**2).sum()) / curved, 1.0) if curved > 0 else 1.0
    beyond_5 = start_5 + 2 * length * step_5 + length**2 * bend_5 - end_5
    beyond_5 *= min(1.0, JUMP_LIMIT / max(np.abs(beyond_5).max(), 1e-300))
    odds, m0, m1, log_v0, log_v1 = end_5 + beyond_5
    w0, w1 = 1 / (1 + math.exp(-odds)), 1 / (1 + math.exp(odds))
    v0, v1 = max(math.exp(log_v0), floor), max(math.exp(log_v1), floor)
    return np.array([w0, w1, m0, m1, v0, v1])


@njit(nogil=True, cache=True, error_model="numpy")
def _clean_first(mixture_6, deviation):  # type: ignore[no-untyped-def]
    w0, w1, m0, m1, v0, v1 = mixture_6
    if abs(m0 - m1) > MEAN_TIE * deviation:
        swap = m0 > m1
    elif v0 != v1:
        swap = v0 > v1
    else:
        swap = w0 < w1
    if swap:
        mixture_6[0], mixture_6[1] = w1, w0
        mixture_6[2], mixture_6[3] = m1, m0
        mixture_6[4], mixture_6[5] = v1, v0


@njit(nogil=True, cache=True, error_model="numpy")
def _score(z_N, settings, mixture_6, deviation, unit, out_3):  # type: ignore[no-untyped-def]
    n = len(z_N)
    likelihood = _em_map(z_N, mixture_6, settings, np.empty(6))
    one_variance = deviation * deviation
    one_kept = _kept_variance(one_variance, settings)
    one_likelihood = -0.5 * (math.log(2 * math.pi * one_kept) + one_variance / one_kept)
    apart = abs(mixture_6[3] - mixture_6[2])
    out_3[0] = likelihood - math.log(unit)
    out_3[1] = 2 * n * (likelihood - one_likelihood) - 3 * math.log(n)
    out_3[2] = apart * math.sqrt(2 / (mixture_6[4] + mixture_6[5]))


def _curves(mixture_K6: np.ndarray, monotone: bool) -> np.ndarray:
    """What the posterior needs of each class, (K, 7): bounds of x, constant, means, 1 / 2v."""
    w0, w1, m0, m1, v0, v1 = mixture_K6.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_K = (m0 * v1 - m1 * v0) / (v1 - v0)
        low_K = np.where(monotone & (v1 > v0), vertex_K, -np.inf)
        high_K = np.where(monotone & (v1 < v0), vertex_K, np.inf)
        constant_K = np.log(w0 / w1) - 0.5 * np.log(v0 / v1)
    return np.stack([low_K, high_K, constant_K, m0, m1, 0.5 / v0, 0.5 / v1], axis=1)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_posteriors(losses_N, labels_N, curves_K7, p_clean_N):  # type: ignore[no-untyped-def]
    for i in prange(len(losses_N)):
        p_clean_N[i] = _posterior(losses_N[i], curves_K7[labels_N[i]])


@njit(nogil=True, cache=True, error_model="numpy")
def _posterior(x, curve_7):  # type: ignore[no-untyped-def]
    low, high, constant, m0, m1, h0, h1 = curve_7
    if math.isnan(constant):
        return 1.0
    x = min(max(x, low), high)
    odds = constant - h0 * (x - m0) ** 2 + h1 * (x - m1) ** 2
    small = math.exp(-abs(odds))
    return (1.0 if odds >= 0 else small) / (1.0 + small)
