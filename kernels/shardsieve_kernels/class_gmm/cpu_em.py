"""The mixture of one class with Numba: start, EM maps, SQUAREM, scores. All of it float64.

The algorithm is that of reference.py. A mixture is six numbers here:
weight 0, weight 1, mean 0, mean 1, variance 0, variance 1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shardsieve_kernels._vector import artanh_third, exp_nonpositive_14
from shardsieve_kernels.class_gmm.cpu_condense import condense
from shardsieve_kernels.class_gmm.reference import EMPTY_GUARD, JUMP_LIMIT, MEAN_TIE, SPLIT_TIE

# Reassociation lets LLVM sum in vector lanes. Nothing here supposes that NaN does not occur.
_SUMS = {"reassoc", "contract", "arcp", "nsz"}
# Factors of the likelihood lie in (1, 2]: a product of this many stays far inside float64, and
# one logarithm does for all of them.
_BLOCK = 256
# Cuts of the first split are searched in blocks of this many.
_CUTS = 64
_LOG_2PI = math.log(2 * math.pi)


@njit(nogil=True, cache=True, error_model="numpy")
def fit(z_N, settings, deviation, out_6):  # type: ignore[no-untyped-def]
    """Fit sorted values whose mean is 0.

    Returns:
        Maps done, whether the stop rule was met, and the mean log-likelihood of the mixture.
    """
    _start(z_N, settings, out_6)
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
    step = np.abs(_free(one_6) - _free(out_6)).max()
    out_6[:] = one_6
    if step <= settings.step_stop:
        return n_iter, True, likelihood
    n_iter, converged = _accelerated(z_N, z_N[:0], settings, n_iter, out_6)
    return n_iter, converged, _likelihood(z_N, settings, out_6)


@njit(nogil=True, cache=True, error_model="numpy")
def _likelihood(z_N, settings, mixture_6):  # type: ignore[no-untyped-def]
    return em_map(z_N, z_N[:0], mixture_6, settings, np.empty(6))


@njit(nogil=True, cache=True, error_model="numpy")
def _start(z_N, settings, out_6):  # type: ignore[no-untyped-def]
    """M step from the exact two-means split."""
    n = len(z_N)
    cut = _two_means(z_N)
    for part in range(2):
        z_part = z_N[:cut] if part == 0 else z_N[cut:]
        count = len(z_part) + EMPTY_GUARD
        mean = _sum_of_powers(z_part, 0.0, 1) / count
        out_6[part] = count / (n + 2 * EMPTY_GUARD)
        out_6[2 + part] = mean
        out_6[4 + part] = _kept_variance(_sum_of_powers(z_part, mean, 2) / count, settings)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _sum_of_powers(z_N, about, power):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(z_N)):
        d = z_N[i] - about
        total += d if power == 1 else d * d
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def _two_means(z_N):  # type: ignore[no-untyped-def]
    """How many values lie below the cut of the first of the best two-means splits.

    Only blocks of cuts that may hold one are searched.
    """
    n = len(z_N)
    n_blocks = (n + _CUTS - 1) // _CUTS
    below_B, bound_B = np.zeros(n_blocks + 1), np.empty(n_blocks)
    best_B = np.full(n_blocks, -1.0)
    for block in range(n_blocks):
        z_block = z_N[block * _CUTS : (block + 1) * _CUTS]
        below_B[block + 1] = below_B[block] + _sum_of_powers(z_block, 0.0, 1)
        bound_B[block] = _bound(z_block, block * _CUTS, n, below_B[block], below_B[block + 1])
    sums, gains = np.empty(_CUTS), np.empty(_CUTS)
    best = -1.0
    # From the most promising block on, which leaves little to search in the others.
    top = np.where(bound_B < np.inf, bound_B, -1.0).argmax()
    for turn in range(n_blocks):
        block = (top + turn) % n_blocks
        if bound_B[block] >= best * (1 - SPLIT_TIE):
            _gains(z_N, block * _CUTS, below_B[block], sums, gains)
            best_B[block] = gains.max()
            best = max(best, best_B[block])
    # Found twice, so that any split within SPLIT_TIE of the best can be the first one.
    enough = best * (1 - SPLIT_TIE)
    block = 0
    while best_B[block] < enough:
        block += 1
    _gains(z_N, block * _CUTS, below_B[block], sums, gains)
    i = 0
    while gains[i] < enough:
        i += 1
    return block * _CUTS + i + 1


@njit(nogil=True, cache=True, error_model="numpy")
def _bound(z_block, first, n, below, after):  # type: ignore[no-untyped-def]
    """A gain that no cut after one of the values of a block exceeds.

    The sum of the values below a cut falls as long as they are negative, then it rises. Where they
    do not change their sign its size is therefore largest at an end of the block, and
    s (n - s) is always least at an end.
    """
    if z_block[0] < 0 < z_block[-1]:
        return np.inf
    size, last = np.float64(first + 1), np.float64(min(first + len(z_block), n - 1))
    largest = max(abs(below), abs(after))
    least = min(size * (n - size), last * (n - last))
    # What rounding may add.
    return largest * largest / least * (1 + 1e-9) if least > 0 else np.inf


@njit(nogil=True, cache=True, error_model="numpy")
def _gains(z_N, first, total, sums, gains):  # type: ignore[no-untyped-def]
    """Write the gains of the cuts after a block's values, -1 for no cut."""
    n = len(z_N)
    last = min(first + _CUTS, n - 1)
    for i in range(first, last):
        total += z_N[i]
        sums[i - first] = total
    for i in range(first, last):
        size = np.float64(i + 1)
        gain = sums[i - first] * sums[i - first] / (size * (n - size))
        gains[i - first] = -1.0 if z_N[i] == z_N[i + 1] else gain
    gains[last - first :] = -1.0


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
    out_6[4] = _kept_variance(second0 / n0 - s0 * s0, settings)
    out_6[5] = _kept_variance(second1 / n1 - s1 * s1, settings)
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
            small = exp_nonpositive_14(-abs(j0 - j1))
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
        small = exp_nonpositive_14(-abs(j0 - j1))
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
def _kept_variance(variance, settings):  # type: ignore[no-untyped-def]
    return max(max(variance, 0.0) + settings.variance_added, settings.variance_floor)


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
    one_6, two_6, landed_6 = np.empty(6), np.empty(6), np.empty(6)
    while n_iter + 3 <= settings.max_iter:
        likelihood = em_map(z_N, weights_N, mixture_6, settings, one_6)
        likelihood_one = em_map(z_N, weights_N, one_6, settings, two_6)
        n_iter += 2
        start_5, middle_5 = _free(mixture_6), _free(one_6)
        step = np.abs(middle_5 - start_5).max()
        gained = likelihood_one - likelihood
        mixture_6[:] = two_6
        if gained <= settings.likelihood_stop and step <= settings.step_stop:
            return n_iter, True
        jump_6 = _jump(start_5, middle_5, _free(two_6), settings.variance_floor)
        likelihood_jump = em_map(z_N, weights_N, jump_6, settings, landed_6)
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
    one_kept = _kept_variance(one_variance, settings)
    one_likelihood = -0.5 * (_LOG_2PI + math.log(one_kept) + one_variance / one_kept)
    apart = abs(mixture_6[3] - mixture_6[2])
    out_3[0] = likelihood - math.log(unit)
    out_3[1] = 2 * n * (likelihood - one_likelihood) - 3 * math.log(n)
    out_3[2] = apart * math.sqrt(2 / (mixture_6[4] + mixture_6[5]))
