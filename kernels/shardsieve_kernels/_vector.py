"""Functions for Numba loops that LLVM turns into vector instructions; those of libm it cannot."""

from __future__ import annotations

import numpy as np
from numba import njit

_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
# log 2 in two parts: whole multiples of the first are exact.
_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10
# The bits of 1.0, and of sqrt(1/2).
_ONE_BITS = 0x3FF0000000000000
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
# Added and taken away again, it leaves the nearest whole number, and its low bits hold that number.
_TO_WHOLE = 6755399441055744.0


# Not inline="always": the caller's permission to reorder sums would come with it, and would let
# LLVM cancel _TO_WHOLE. LLVM inlines the function later, with its own permissions.
@njit(error_model="numpy", fastmath={"contract"}, forceinline=True)
def exp_nonpositive(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0, to 1.6e-14 + 2e-16 |x| of itself; what is below -700 counts as -700.

    The polynomial has degree 9 and the least largest relative error on |r| <= log(2) / 2 (1.5e-14)
    of those that are 1 at 0, so exp(0) is exactly 1. Its terms are added as a tree: a loop over
    samples waits for the chain of additions, not for their number.
    """
    x = max(x, -700.0)
    marked = x * _LOG2_E + _TO_WHOLE
    r = x - (marked - _TO_WHOLE) * _LN2
    s = r * r
    p8 = r * 2.7476764840282407e-06 + 2.4882004265589587e-05
    p6 = r * 0.0001984160319145348 + 0.0013888808175532797
    p4 = r * 0.008333333007673055 + 0.04166666698526905
    p2 = r * 0.16666666667746177 + 0.4999999999961018
    p0 = r * 0.9999999999999132 + 1.0
    p = ((p8 * s + p6) * s + p4) * (s * s) + (p2 * s + p0)
    # Times 2^n, by adding n to its exponent bits.
    return np.int64(np.float64(p).view(np.int64) + (np.float64(marked).view(np.int64) << 52)).view(
        np.float64
    )


@njit(error_model="numpy", fastmath={"contract"}, inline="always")
def exp_nonpositive_single(x):  # type: ignore[no-untyped-def]
    """exp(x) for an f32 x <= 0, to 1e-7 + 5e-8 |x| of itself; below -87.3 it is 0, exp(0) is 1.

    As 2^n 2^f with |f| <= 1/2. The error in f is that of x log2(e) rounded to f32, as large as the
    rounding of the difference that x is. The polynomial has the least largest relative error.
    """
    y = max(x, np.float32(-87.3))
    # Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    marked = y * np.float32(_LOG2_E) + np.float32(12582912.0)
    f = y * np.float32(_LOG2_E) - (marked - np.float32(12582912.0))
    p = f * np.float32(0.0013264727) + np.float32(0.0096715127)
    p = p * f + np.float32(0.0555073374)
    p = p * f + np.float32(0.2402224208)
    p = p * f + np.float32(0.6931469776)
    p = p * f + np.float32(1.0)
    # Times 2^n, by adding n to its exponent bits.
    bits = np.int32(np.float32(p).view(np.int32) + (np.float32(marked).view(np.int32) << 23))
    return bits.view(np.float32) if x >= np.float32(-87.3) else np.float32(0.0)


@njit(error_model="numpy", fastmath={"contract"}, inline="always")
def exp_and_expm1_nonpositive(x):  # type: ignore[no-untyped-def]
    """exp(x) and exp(x) - 1 for x <= 0, both to 1e-12 of themselves; below -700 counts as -700."""
    x = max(x, -700.0)
    marked = x * _LOG2_E + _TO_WHOLE
    n = marked - _TO_WHOLE
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * (1 / 3628800) + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r * r + r
    scale = np.int64((np.float64(marked).view(np.int64) << 52) + _ONE_BITS).view(np.float64)
    return scale * p + scale, scale * p + (scale - 1.0)


@njit(error_model="numpy", fastmath={"contract"}, inline="always")
def log1p_nonnegative(x):  # type: ignore[no-untyped-def]
    """log(1 + x) for x >= 0, to 1e-12 of itself.

    1 + x = 2^n m with m in [1/sqrt(2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)) as a series of
    nine terms. What 1 + x rounds away comes back to first order.
    """
    u = 1.0 + x
    lost = x - (u - 1.0)
    bits = np.float64(u).view(np.int64)
    # Exponent of u / sqrt(1/2), so that m is nearest to 1.
    n = np.int32((bits - _SQRT_HALF_BITS) >> 52)
    m = np.int64(bits - (np.int64(n) << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = z * (2 / 17) + 2 / 15
    p = p * z + 2 / 13
    p = p * z + 2 / 11
    p = p * z + 2 / 9
    p = p * z + 2 / 7
    p = p * z + 2 / 5
    p = p * z + 2 / 3
    p = p * z * s + 2.0 * s
    return n * _LN2_HIGH + (n * _LN2_LOW + p) + lost / u


@njit(error_model="numpy", fastmath={"contract"}, forceinline=True)
def artanh_third(s):  # type: ignore[no-untyped-def]
    """artanh(s) for 0 <= s <= 1/3, to 2e-15 of itself; log(1 + x) is 2 artanh(x / (2 + x)).

    s times a polynomial in s^2 with the least largest relative error, its terms added as a tree.
    """
    t = s * s
    u = t * t
    p7 = t * 0.09387413401664267 + 0.05868760556294069
    p5 = t * 0.07786025448545314 + 0.09084603971683575
    p3 = t * 0.11111358151477709 + 0.1428570887505209
    p1 = t * 0.20000000059185008 + 0.3333333333308456
    return s * ((((p7 * u + p5) * u + p3) * u + p1) * t + 1.0000000000000018)


# Told that there is no NaN, LLVM takes the maximum of many numbers at a time.
@njit(fastmath={"nnan", "nsz"})
def _larger(a, b):  # type: ignore[no-untyped-def]
    return a if a > b else b


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def largest_and_finite(values, at, width):  # type: ignore[no-untyped-def]
    """Give the largest number of a part of a 1-D array, and whether all of the part are finite.

    If not, the first means nothing. at and width are u64, width at least 1.
    """
    largest = values[at]
    zero = values.dtype.type(0.0)
    for k in range(width):
        largest = _larger(largest, values[at + k])
        zero += values[at + k] * values.dtype.type(0.0)
    return largest, zero == 0.0
