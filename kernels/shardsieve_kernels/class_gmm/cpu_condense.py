"""A class of many samples as few weighted points: what SQUAREM runs on before it sees them all.

Neighbours of the sorted losses are gathered into narrow groups, and each group is replaced by the
nodes of the Gauss quadrature of its samples: at most three points, inside the group, with weights
above 0 and the group's first six moments. What EM sums over the samples is smooth, so the sums over
the points are those over the samples but for about 1e-9 of themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# A group reaches over no more than 1 / 16 of the class's standard deviation and 1 / 128 of its
# samples (the latter resolves narrow components), in large classes over half of both.
GROUPS_PER_DEVIATION = 16
GROUPS_AT_LEAST = 128
LARGE_CLASS = 16384
# Squared distance of nodes, in squares of the group's half width, that rounding cannot tell from 0.
SAME_NODE = 1e-12
# Classes smaller than this are not condensed, nor those that would not become this much smaller.
CONDENSED_FROM = 512
CONDENSED_TO = 1 / 2


@njit(nogil=True, cache=True, error_model="numpy")
def condense(z_N, deviation):  # type: ignore[no-untyped-def]
    """Return points and weights of a class whose mean is 0; empty if it is not worth while."""
    n = len(z_N)
    limit = int(n * CONDENSED_TO)
    points_M, weights_M = np.empty(limit), np.empty(limit)
    if n < CONDENSED_FROM:
        return points_M[:0], weights_M[:0]
    finer = 2 if n >= LARGE_CLASS else 1
    width = deviation / (finer * GROUPS_PER_DEVIATION)
    most = n // (finer * GROUPS_AT_LEAST)
    size = 0
    start = 0
    while start < n:
        if size + 3 > limit:
            return points_M[:0], weights_M[:0]
        last = min(start + most, n)
        end = z_N[start] + width
        stop = last if z_N[last - 1] <= end else start + 1
        while stop < last and z_N[stop] <= end:
            stop += 1
        size += _nodes(z_N[start:stop], points_M[size : size + 3], weights_M[size : size + 3])
        start = stop
    return points_M[:size], weights_M[:size]


@njit(nogil=True, cache=True, error_model="numpy")
def _nodes(z_N, points_3, weights_3):  # type: ignore[no-untyped-def]
    """Write the nodes and weights of the Gauss quadrature of some samples; return how many."""
    n = len(z_N)
    if n <= 3:
        for i in range(n):
            points_3[i], weights_3[i] = z_N[i], 1.0
        return n
    half = 0.5 * (z_N[-1] - z_N[0])
    mean, second, third, fourth, fifth = _moments(z_N, 1 / half if half > 0 else 0.0)
    if second <= SAME_NODE:
        points_3[0], weights_3[0] = mean, n
        return 1
    # The recurrence of the orthogonal polynomials 1, x, (x - a1) x - b1 and its cubic successor.
    a1 = third / second
    b1 = second
    b2 = (fourth - a1 * third) / second - second
    if b2 <= SAME_NODE:
        return _two_nodes(n, mean, half, a1, b1, points_3, weights_3)
    a2 = (fifth - 2 * a1 * fourth + (a1 * a1 - 2 * b1) * third) / (second * b2) + 2 * a1 * b1 / b2
    _three_nodes(n, mean, half, a1, a2, b1, b2, points_3, weights_3)
    return 3


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _moments(z_N, scale):  # type: ignore[no-untyped-def]
    n = len(z_N)
    total = 0.0
    for i in range(n):
        total += z_N[i] - z_N[0]
    mean = z_N[0] + total / n
    second = third = fourth = fifth = 0.0
    for i in range(n):
        d = (z_N[i] - mean) * scale
        q = d * d
        second += q
        third += q * d
        fourth += q * q
        fifth += q * q * d
    return mean, second / n, third / n, fourth / n, fifth / n


@njit(nogil=True, cache=True, error_model="numpy")
def _two_nodes(n, mean, half, a1, b1, points_3, weights_3):  # type: ignore[no-untyped-def]
    root = math.sqrt(a1 * a1 + 4 * b1)
    for i in range(2):
        t = 0.5 * (a1 + root if i else a1 - root)
        points_3[i], weights_3[i] = mean + half * t, n / (1 + t * t / b1)
    return 2


@njit(nogil=True, cache=True, error_model="numpy")
def _three_nodes(n, mean, half, a1, a2, b1, b2, points_3, weights_3):  # type: ignore[no-untyped-def]
    """The roots of t^3 + c2 t^2 + c1 t + c0, which are real, by Viete's formula."""
    c2, c1, c0 = -(a1 + a2), a1 * a2 - b1 - b2, a2 * b1
    p = c1 - c2 * c2 / 3
    q = c2 * (2 * c2 * c2 - 9 * c1) / 27 + c0
    reach = math.sqrt(max(-p / 3, 0.0))
    cosine = -q / (2 * reach * reach * reach)
    angle = math.acos(min(max(cosine, -1.0), 1.0)) / 3
    along, across = math.cos(angle), math.sqrt(0.75) * math.sin(angle)
    for i in range(3):
        # The cosine of angle - i 2 pi / 3.
        turned = along if i == 0 else (across if i == 1 else -across) - 0.5 * along
        t = 2 * reach * turned - c2 / 3
        quadratic = (t - a1) * t - b1
        points_3[i] = mean + half * t
        weights_3[i] = n / (1 + t * t / b1 + quadratic * quadratic / (b1 * b2))
