"""Where EM starts: the M step from the exact two-means split of a class. All of it float64."""

from __future__ import annotations

import numpy as np
from numba import njit

from shardsieve_kernels.class_gmm.reference import EMPTY_GUARD, SPLIT_TIE

# Cuts of the sorted values are searched in blocks of this many.
_CUTS = 64


@njit(nogil=True, cache=True, error_model="numpy")
def kept_variance(variance, settings):  # type: ignore[no-untyped-def]
    """A variance with what the settings add, not below their floor."""
    return max(max(variance, 0.0) + settings.variance_added, settings.variance_floor)


@njit(nogil=True, cache=True, error_model="numpy")
def start(z_N, settings, out_6):  # type: ignore[no-untyped-def]
    """M step from the exact two-means split."""
    n = len(z_N)
    cut = _two_means(z_N)
    for part in range(2):
        z_part = z_N[:cut] if part == 0 else z_N[cut:]
        count = len(z_part) + EMPTY_GUARD
        mean = _sum_of_powers(z_part, 0.0, 1) / count
        out_6[part] = count / (n + 2 * EMPTY_GUARD)
        out_6[2 + part] = mean
        out_6[4 + part] = kept_variance(_sum_of_powers(z_part, mean, 2) / count, settings)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
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
    top = int(np.where(bound_B < np.inf, bound_B, -1.0).argmax())
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
