"""The mixture of one class with Numba: EM maps, SQUAREM, scores. All of it float64.

The algorithm is that of reference.py. A mixture is six numbers here:
weight 0, weight 1, mean 0, mean 1, variance 0, variance 1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shardsieve_kernels._vector import artanh_third, exp_nonpositive
from shardsieve_kernels.class_gmm.cpu_condense import condense
from shardsieve_kernels.class_gmm.cpu_start import kept_variance, start
from shardsieve_kernels.class_gmm.reference import EMPTY_GUARD, JUMP_LIMIT, MEAN_TIE

# Reassociation lets LLVM sum in vector lanes. Nothing here supposes that NaN does not occur.
_SUMS = {"reassoc", "contract", "arcp", "nsz"}
# Factors of the likelihood lie in (1, 2]: a product of this many stays far inside float64, and
# one logarithm does for all of them.
_BLOCK = 256
_LOG_2PI = math.log(2 * math.pi)


@njit(nogil=True, cache=True, error_model="numpy")
def fit(z_N, settings, deviation, out_6):  # type: ignore[no-untyped-def]
    """Fit sorted values whose mean is 0.

    Returns:
        Maps done, whether the stop rule was met, and the mean log-likelihood of the mixture.
    """
    start(z_N, settings, out_6)
    if settings.accelerate:
        points_M, weights_M = condense(z_N, deviation)
        if len(points_M):
            return _by_points(z_N, points_M, weights_M, settings, out_6)
        n_iter, converged = _accelerated(z_N, z_N[:0], settings, 0, out_6)
    else:
        n_iter, converged = _plain(z_N, settings, out_6)
    return n_iter, converged, _likelihood(z_N, settings, out_6)


@njit(nogil=True, cache=True, error_model="numpy")
def _by_points(z_N, points_M, weights_M, settings, out_6):  # type: ignore[no-untyped-def]
    n_iter, converged = _accelerated(points_M, weights_M, settings, 0, out_6)
    one_6 = np.empty(6)
    likelihood = em_map(z_N, z_N[:0], out_6, settings, one_6)
    if not converged:
        return n_iter, False, likelihood
    # All samples have the last word: where one more map moves nothing, the points were right.
    n_iter += 1
    before_5, after_5 = np.empty(5), np.empty(5)
    _free(out_6, before_5)
    _free(one_6, after_5)
    step = _largest_step(before_5, after_5)
    out_6[:] = one_6
    if step <= settings.step_stop:
        return n_iter, True, likelihood
    n_iter, converged = _accelerated(z_N, z_N[:0], settings, n_iter, out_6)
    return n_iter, converged, _likelihood(z_N, settings, out_6)


@njit(nogil=True, cache=True, error_model="numpy")
def _likelihood(z_N, settings, mixture_6):  # type: ignore[no-untyped-def]
    return em_map(z_N, z_N[:0], mixture_6, settings, np.empty(6))


@njit(nogil=True, cache=True, error_model="numpy")
def em_map(z_N, weights_N, mixture_6, settings, out_6):  # type: ignore[no-untyped-def]
    """Write one EM step to out_6; return the mean log-likelihood of the mixture before it.

    Without weights each value counts once.
    """
    w0, w1, m0, m1, v0, v1 = mixture_6
    c0 = math.log(w0) - 0.5 * (_LOG_2PI + math.log(v0))
    c1 = math.log(w1) - 0.5 * (_LOG_2PI + math.log(v1))
    h0, h1 = 0.5 / v0, 0.5 / v1
    if len(weights_N) == 0:
        sums_7 = _sums(z_N, c0, c1, m0, m1, h0, h1)
    else:
        sums_7 = _weighted_sums(z_N, weights_N, c0, c1, m0, m1, h0, h1)
    likelihood, n0, n1, first0, first1, second0, second1 = sums_7
    n = n0 + n1
    n0 += EMPTY_GUARD
    n1 += EMPTY_GUARD
    s0, s1 = first0 / n0, first1 / n1
    out_6[0] = n0 / (n0 + n1)
    out_6[1] = n1 / (n0 + n1)
    out_6[2] = m0 + s0
    out_6[3] = m1 + s1
    out_6[4] = kept_variance(second0 / n0 - s0 * s0, settings)
    out_6[5] = kept_variance(second1 / n1 - s1 * s1, settings)
    return likelihood / n


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _sums(z_N, c0, c1, m0, m1, h0, h1):  # type: ignore[no-untyped-def]
    """Log-likelihood, and the sums of r, r d and r d^2 of each component, d = z - mean."""
    # About the old means: near the new ones, so that no digits are lost.
    n = len(z_N)
    likelihood = n0 = n1 = first0 = first1 = second0 = second1 = 0.0
    for block in range(0, n, _BLOCK):
        product = 1.0
        for i in range(block, min(block + _BLOCK, n)):
            d0 = z_N[i] - m0
            d1 = z_N[i] - m1
            q0 = d0 * d0
            q1 = d1 * d1
            j0 = c0 - h0 * q0
            j1 = c1 - h1 * q1
            small = exp_nonpositive(-abs(j0 - j1))
            larger = 1.0 / (1.0 + small)
            smaller = small * larger
            r0 = larger if j0 >= j1 else smaller
            r1 = smaller if j0 >= j1 else larger
            likelihood += j0 if j0 >= j1 else j1
            product *= 1.0 + small
            n0 += r0
            n1 += r1
            first0 += r0 * d0
            first1 += r1 * d1
            second0 += r0 * q0
            second1 += r1 * q1
        likelihood += math.log(product)
    return likelihood, n0, n1, first0, first1, second0, second1


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _weighted_sums(z_N, weights_N, c0, c1, m0, m1, h0, h1):  # type: ignore[no-untyped-def]
    """What `_sums` returns, for values that count as often as their weights say."""
    likelihood = n0 = n1 = first0 = first1 = second0 = second1 = 0.0
    for i in range(len(z_N)):
        d0 = z_N[i] - m0
        d1 = z_N[i] - m1
        q0 = d0 * d0
        q1 = d1 * d1
        j0 = c0 - h0 * q0
        j1 = c1 - h1 * q1
        small = exp_nonpositive(-abs(j0 - j1))
        # One division gives both 1 / (1 + small) and small / (2 + small).
        per = 1.0 / ((1.0 + small) * (2.0 + small))
        larger = weights_N[i] * (per * (2.0 + small))
        smaller = small * larger
        r0 = larger if j0 >= j1 else smaller
        r1 = smaller if j0 >= j1 else larger
        likelihood += weights_N[i] * (
            (j0 if j0 >= j1 else j1) + 2 * artanh_third(small * (per * (1.0 + small)))
        )
        n0 += r0
        n1 += r1
        first0 += r0 * d0
        first1 += r1 * d1
        second0 += r0 * q0
        second1 += r1 * q1
    return likelihood, n0, n1, first0, first1, second0, second1


@njit(nogil=True, cache=True, error_model="numpy")
def _plain(z_N, settings, mixture_6):  # type: ignore[no-untyped-def]
    every = z_N[:0]
    before = -np.inf
    for n_iter in range(1, settings.max_iter + 1):
        likelihood = em_map(z_N, every, mixture_6, settings, mixture_6)
        if abs(likelihood - before) < settings.likelihood_stop:
            return n_iter, True
        before = likelihood
    return settings.max_iter, False


@njit(nogil=True, cache=True, error_model="numpy")
def _accelerated(z_N, weights_N, settings, n_iter, mixture_6):  # type: ignore[no-untyped-def]
    """SQUAREM after n_iter maps; a jump to a lower likelihood than EM has is undone."""
    one_6, two_6, jump_6, landed_6 = np.empty(6), np.empty(6), np.empty(6), np.empty(6)
    start_5, middle_5, end_5 = np.empty(5), np.empty(5), np.empty(5)
    while n_iter + 3 <= settings.max_iter:
        likelihood = em_map(z_N, weights_N, mixture_6, settings, one_6)
        likelihood_one = em_map(z_N, weights_N, one_6, settings, two_6)
        n_iter += 2
        _free(mixture_6, start_5)
        _free(one_6, middle_5)
        gained = likelihood_one - likelihood
        step = _largest_step(start_5, middle_5)
        mixture_6[:] = two_6
        if gained <= settings.likelihood_stop and step <= settings.step_stop:
            return n_iter, True
        _free(two_6, end_5)
        _jump(start_5, middle_5, end_5, settings.variance_floor, jump_6)
        likelihood_jump = em_map(z_N, weights_N, jump_6, settings, landed_6)
        n_iter += 1
        if likelihood_jump >= likelihood_one:
            mixture_6[:] = landed_6
    return n_iter, False


# Numbers are written to arrays of the caller: a class of some hundred points has a map done in
# two microseconds, and making arrays would take a tenth of that.
@njit(nogil=True, cache=True, error_model="numpy")
def _free(mixture_6, out_5):  # type: ignore[no-untyped-def]
    out_5[0] = math.log(mixture_6[0] / mixture_6[1])
    out_5[1], out_5[2] = mixture_6[2], mixture_6[3]
    out_5[3], out_5[4] = math.log(mixture_6[4]), math.log(mixture_6[5])


@njit(nogil=True, cache=True, error_model="numpy")
def _largest_step(start_5, end_5):  # type: ignore[no-untyped-def]
    step = 0.0
    for i in range(5):
        moved = abs(end_5[i] - start_5[i])
        # NaN stays, and meets no stop rule.
        if moved > step or moved != moved:
            step = moved
    return step


@njit(nogil=True, cache=True, error_model="numpy")
def _jump(start_5, middle_5, end_5, floor, out_6):  # type: ignore[no-untyped-def]
    """Write where the jump leads; start_5 and end_5 are overwritten."""
    squared_step = squared_bend = 0.0
    for i in range(5):
        step = middle_5[i] - start_5[i]
        bend = end_5[i] - middle_5[i] - step
        squared_step += step * step
        squared_bend += bend * bend
    curved = math.sqrt(squared_bend)
    length = max(math.sqrt(squared_step) / curved, 1.0) if curved > 0 else 1.0
    furthest = 1e-300
    for i in range(5):
        step = middle_5[i] - start_5[i]
        bend = end_5[i] - middle_5[i] - step
        start_5[i] += 2 * length * step + length**2 * bend - end_5[i]
        furthest = max(furthest, abs(start_5[i]))
    shrink = min(1.0, JUMP_LIMIT / furthest)
    for i in range(5):
        end_5[i] += shrink * start_5[i]
    odds = end_5[0]
    out_6[0], out_6[1] = 1 / (1 + math.exp(-odds)), 1 / (1 + math.exp(odds))
    out_6[2], out_6[3] = end_5[1], end_5[2]
    out_6[4] = max(math.exp(end_5[3]), floor)
    out_6[5] = max(math.exp(end_5[4]), floor)


@njit(nogil=True, cache=True, error_model="numpy")
def clean_first(mixture_6, deviation):  # type: ignore[no-untyped-def]
    """Order the components in place: by mean; of equal means by variance, then by weight."""
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
def score(n, likelihood, settings, mixture_6, deviation, unit, out_3):  # type: ignore[no-untyped-def]
    """Write log-likelihood, gain in BIC and separation."""
    one_variance = deviation * deviation
    one_kept = kept_variance(one_variance, settings)
    one_likelihood = -0.5 * (_LOG_2PI + math.log(one_kept) + one_variance / one_kept)
    apart = abs(mixture_6[3] - mixture_6[2])
    out_3[0] = likelihood - math.log(unit)
    out_3[1] = 2 * n * (likelihood - one_likelihood) - 3 * math.log(n)
    out_3[2] = apart * math.sqrt(2 / (mixture_6[4] + mixture_6[5]))
