"""Comparisons of a fast backend with the reference."""

from __future__ import annotations

import numpy as np


def assert_close(
    field: str, got: np.ndarray, want: np.ndarray, *, rtol: float, atol: float
) -> None:
    """Require two arrays to have one dtype and shape and to agree to a tolerance, NaN for NaN.

    Raises:
        AssertionError: they do not; names the field and the worst element.
    """
    assert got.dtype == want.dtype, f"{field}: dtype {got.dtype}, reference {want.dtype}"
    assert got.shape == want.shape, f"{field}: shape {got.shape}, reference {want.shape}"
    close = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return
    with np.errstate(invalid="ignore"):
        excess = np.abs(got.astype(np.float64) - want) - atol - rtol * np.abs(want)
    excess[close] = -np.inf
    excess[~close & np.isnan(excess)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), got.shape))
    raise AssertionError(
        f"{field}{list(at)}: got {got[at]}, reference {want[at]} (rtol={rtol}, atol={atol}; "
        f"{int((~close).sum())} of {got.size} differ)"
    )


def assert_same_decision(
    got_N: np.ndarray, want_N: np.ndarray, *, threshold: float, slack: float
) -> None:
    """Require two posteriors to keep the same samples, save those within slack of the threshold.

    Raises:
        AssertionError: a sample is kept by one alone; names the first.
    """
    differ_N = (got_N > threshold) != (want_N > threshold)
    differ_N &= np.abs(want_N - threshold) > slack
    if differ_N.any():
        row = int(np.argmax(differ_N))
        raise AssertionError(
            f"{int(differ_N.sum())} of {len(want_N)} decisions differ at {threshold}; first at row "
            f"{row}: got {got_N[row]}, reference {want_N[row]}"
        )
