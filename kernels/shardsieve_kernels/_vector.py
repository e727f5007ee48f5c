"""Functions for Numba loops that LLVM turns into vector instructions; those of libm it cannot."""

from __future__ import annotations

import numpy as np
from numba import njit

_LOG2_E = 1.4426950408889634
# log 2 in two parts: whole multiples of the first are exact.
_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10


# Added and taken away again, it leaves the nearest whole number, and its low bits hold that number.
_TO_WHOLE = 6755399441055744.0


# Not inline="always": the caller's permission to reorder sums would come with it, and would let
# LLVM cancel _TO_WHOLE. LLVM inlines the function later, with its own permissions.
@njit(error_model="numpy", fastmath={"contract"}, forceinline=True)
def exp_nonpositive(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0, to a few units in the last place; what is below -700 counts as -700.

    exp(x) = 2^n exp(r) with |r| <= log(2) / 2, where the Taylor polynomial of degree 12 is exact to
    r^13 / 13! < 2e-16. exp(0) is exactly 1.
    """
    x = max(x, -700.0)
    shifted = x * _LOG2_E + _TO_WHOLE
    n = shifted - _TO_WHOLE
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * (1 / 479001600) + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # 2^n, by its exponent bits.
    return p * np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)


@njit(error_model="numpy", fastmath={"contract"}, forceinline=True)
def log1p_unit(x):  # type: ignore[no-untyped-def]
    """log(1 + x) for 0 <= x <= 1, to a few units in the last place.

    It is 2 artanh(s) with s = x / (2 + x) <= 1/3, whose series is cut after s^29.
    """
    s = x / (2.0 + x)
    t = s * s
    p = t * (1 / 29) + 1 / 27
    p = p * t + 1 / 25
    p = p * t + 1 / 23
    p = p * t + 1 / 21
    p = p * t + 1 / 19
    p = p * t + 1 / 17
    p = p * t + 1 / 15
    p = p * t + 1 / 13
    p = p * t + 1 / 11
    p = p * t + 1 / 9
    p = p * t + 1 / 7
    p = p * t + 1 / 5
    p = p * t + 1 / 3
    p = p * t + 1.0
    return 2.0 * s * p
