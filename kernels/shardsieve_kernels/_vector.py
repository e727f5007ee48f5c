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
