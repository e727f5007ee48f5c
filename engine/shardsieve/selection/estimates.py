"""What p_clean says of the labels as a whole: how many are wrong, and what a threshold costs.

Shapes: N samples, K classes, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

# How far the noise model is from real noise, which the folds cannot show: more than the largest
# |estimated - true rate| over the label sets that the constants of `best` were chosen on (0.014).
MODEL_DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class NoiseRate:
    """Estimated share of wrong labels with a 95 % interval."""

    rate: float
    low: float
    high: float


def noise_rate(p_clean_N: npt.NDArray[np.float64], rate_F: npt.NDArray[np.float64]) -> NoiseRate:
    """Estimates the share of wrong labels.

    The interval adds two variances: between folds, and of the model against the truth
    (`MODEL_DEVIATION`), which a bootstrap of the same model cannot see.

    Args:
        p_clean_N: Calibrated probabilities.
        rate_F: The estimate in each fold.
    """
    rate = float(1 - p_clean_N.mean())
    sampling = float(rate_F.std(ddof=1)) / np.sqrt(len(rate_F)) if len(rate_F) > 1 else 0.0
    half = norm.ppf(0.975) * np.hypot(sampling, MODEL_DEVIATION)
    return NoiseRate(rate, max(0.0, rate - half), min(1.0, rate + half))


def expected_noise(
    p_clean_N: npt.NDArray[np.float64], taus: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """Returns the kept fraction and the expected share of wrong labels among the kept, per tau.

    NaN where nothing is kept.
    """
    ordered = np.sort(p_clean_N)
    wrong_above = np.concatenate([np.cumsum((1 - ordered)[::-1])[::-1], [0.0]])
    first = np.searchsorted(ordered, taus, side="right")
    kept = len(ordered) - first
    noise = np.divide(wrong_above[first], kept, out=np.full(len(kept), np.nan), where=kept > 0)
    return (kept / max(len(ordered), 1)).tolist(), noise.tolist()


def tau_for_purity(p_clean_N: npt.NDArray[np.float64], purity: float) -> float | None:
    """Returns the lowest tau at which the kept samples are expected to be right this often.

    Keeping p_clean > tau then keeps as many samples as the target allows. None when even the surest
    sample is not sure enough.
    """
    ordered = np.sort(p_clean_N)[::-1]
    mean = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    # Samples with equal p_clean are kept or removed together.
    last_of_equals = np.append(ordered[1:] < ordered[:-1], True)
    good = np.flatnonzero((mean >= purity) & last_of_equals)
    if not len(good):
        return None
    last = int(good[-1])
    return float(ordered[last + 1]) if last + 1 < len(ordered) else 0.0


def within_quotas(
    p_clean_N: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    tau: float,
    *,
    floor: int,
    cap: int | None,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Keeps p_clean > tau, but of every class at least `floor` samples and at most `cap`.

    The samples with the highest p_clean come first, among equals the first row.

    Returns:
        (N,) kept; (N,) removed by the cap alone.
    """
    above_N = p_clean_N > tau
    order = np.lexsort((np.arange(len(label_N)), -p_clean_N, label_N))
    count_K = np.bincount(label_N, minlength=n_classes)
    starts_K = np.concatenate([[0], np.cumsum(count_K)[:-1]])
    rank_N = np.empty(len(label_N), np.int64)
    rank_N[order] = np.arange(len(label_N)) - starts_K[label_N[order]]
    kept_N = above_N | (rank_N < floor)
    if cap is None:
        return kept_N, np.zeros(len(label_N), bool)
    over_N = kept_N & (rank_N >= cap)
    return kept_N & ~over_N, over_N


def class_weights(kept_K: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Weights that give every class the same say in a mean over the kept samples.

    Their mean over the kept samples is 1; a class of which nothing is kept gets 0.
    """
    present = kept_K > 0
    weight_K = np.zeros(len(kept_K))
    weight_K[present] = kept_K.sum() / (present.sum() * kept_K[present])
    return weight_K
