"""Functions for Numba loops that LLVM turns into vector instructions; those of libm it cannot."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_LOG2_E = 1.4426950408889634
# log 2 in two parts: whole multiples of the first are exact.
_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10


@njit(error_model="numpy", fastmath={"contract"}, inline="always")
def exp_nonpositive(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0, to 1e-12 of itself; what is below -700 counts as -700.

    exp(x) = 2^n exp(r) with |r| <= log(2) / 2, where the Taylor polynomial of degree 10 is exact to
    r^11 / 11! < 3e-13. exp(0) is exactly 1.
    """
    x = max(x, -700.0)
    n = math.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * (1 / 3628800) + 1 / 362880
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
    return p * np.int64(np.int64(1023 + np.int32(n)) << 52).view(np.float64)


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
    n = math.floor(x * _LOG2_E + 0.5)
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
    scale = np.int64(np.int64(1023 + np.int32(n)) << 52).view(np.float64)
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
    n = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (n << 52)).view(np.float64)
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


# Told that there is no NaN, LLVM takes the maximum of many numbers at a time.
@njit(fastmath={"nnan", "nsz"})
def _larger(a, b):  # type: ignore[no-untyped-def]
    return a if a > b else b


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def largest_and_finite(values):  # type: ignore[no-untyped-def]
    """Give the largest number, and whether all are finite; if not, the first means nothing."""
    largest = values[0]
    zero = values.dtype.type(0.0)
    for k in range(len(values)):
        largest = _larger(largest, values[k])
        zero += values[k] * values.dtype.type(0.0)
    return largest, zero == 0.0
