"""How much noise the verdicts amount to: rates with intervals, purity, and who is taken for whom.

Everything here is read off p_clean. It is as good as p_clean is calibrated, which only true labels
could tell.

Shapes: N samples, K classes, J judged samples, M shown classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shardsieve.page.verdicts import Verdicts

# 95 % of a normal distribution lie within this many standard deviations.
_Z = 1.959964
MATRIX_CLASSES = 24


class AtTau(NamedTuple):
    """What a threshold would keep.

    Attributes:
        tau: The threshold.
        samples: How many samples.
        kept: Which share of the judged ones.
        purity: Mean p_clean of them, the expected share of right labels; None for none.
    """

    tau: float
    samples: int
    kept: float
    purity: float | None


def noise_rates(
    labels_J: npt.NDArray[np.int64], p_clean_J: npt.NDArray[np.float64], n_classes: int
) -> npt.NDArray[np.float64]:
    """Estimates the share of wrong labels in each class, with a 95 % interval.

    The number of wrong labels is a sum of independent coins, one of probability 1 - p_clean per
    sample (Poisson binomial): its mean is the sum of 1 - p_clean, its variance the sum of
    p_clean (1 - p_clean); the interval is its normal approximation. It says how unsure the single
    verdicts are, not whether the mixture fits.

    Args:
        labels_J: (J,) classes.
        p_clean_J: (J,) posteriors.
        n_classes: K.

    Returns:
        (K, 3) rate, lower and upper end, each in [0, 1]; NaN for a class without samples.
    """
    counts_K = np.bincount(labels_J, minlength=n_classes).astype(np.float64)
    wrong_K = np.bincount(labels_J, weights=1 - p_clean_J, minlength=n_classes)
    variance_K = np.bincount(labels_J, weights=p_clean_J * (1 - p_clean_J), minlength=n_classes)
    some_K = np.where(counts_K > 0, counts_K, np.nan)
    rate_K = wrong_K / some_K
    half_K = _Z * np.sqrt(np.maximum(variance_K, 0)) / some_K
    return np.stack([rate_K, np.maximum(rate_K - half_K, 0), np.minimum(rate_K + half_K, 1)], 1)


def noise_summary(verdicts: Verdicts) -> dict[str, float] | None:
    """Returns rate, lower and upper end over all classes, and the rate among what is kept.

    None when nothing was judged.
    """
    judged_N = verdicts.judged_N & np.isfinite(verdicts.p_clean_N)
    if not judged_N.any():
        return None
    p_clean_J = verdicts.p_clean_N[judged_N]
    [[rate, low, high]] = noise_rates(np.zeros(len(p_clean_J), np.int64), p_clean_J, 1).tolist()
    kept_N = judged_N & verdicts.kept_N
    left = float(np.mean(1 - verdicts.p_clean_N[kept_N])) if kept_N.any() else 0.0
    return {"rate": rate, "low": low, "high": high, "left": left}


def class_noise(verdicts: Verdicts, n_classes: int) -> npt.NDArray[np.float64]:
    """Returns (K, 3) rate, lower and upper end per class as labelled."""
    judged_N = verdicts.judged_N & np.isfinite(verdicts.p_clean_N)
    labels_J = verdicts.label_N[judged_N].astype(np.int64)
    return noise_rates(labels_J, verdicts.p_clean_N[judged_N], n_classes)


def purity_by_tau(verdicts: Verdicts, taus: Sequence[float]) -> list[AtTau]:
    """Returns what each tau would keep, as the posterior sees it; nothing is fitted anew."""
    p_clean_J = verdicts.p_clean_N[verdicts.judged_N & np.isfinite(verdicts.p_clean_N)]
    ordered = np.sort(p_clean_J)
    from_top = np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])
    rows = []
    for tau in taus:
        first = int(np.searchsorted(ordered, tau, side="right"))
        kept = len(ordered) - first
        purity = min(1.0, float(from_top[first] / kept)) if kept else None
        rows.append(AtTau(tau, kept, kept / max(1, len(ordered)), purity))
    return rows


def label_matrix(
    verdicts: Verdicts, suggested_N: npt.NDArray[np.int32], names: Sequence[str]
) -> dict[str, Any] | None:
    """Counts what the samples of each class look like.

    Args:
        verdicts: The scores.
        suggested_N: (N,) i32 the class each sample looks like, -1 where there is none.
        names: K class names.

    Returns:
        `names` of the M classes shown (all, or those with most samples that look like another
        class), `rows` (M x M shares of each class's samples), `others` (share that looks like a
        class that is not shown), `left_out` (how many classes). None when nothing was judged.
    """
    both_N = verdicts.judged_N & (suggested_N >= 0)
    if not both_N.any():
        return None
    labels, looks = verdicts.label_N[both_N].astype(np.int64), suggested_N[both_N].astype(np.int64)
    n_classes = len(names)
    differing_K = np.bincount(labels[labels != looks], minlength=n_classes)
    totals_K = np.bincount(labels, minlength=n_classes)
    present = np.flatnonzero(totals_K)
    worst = present[np.argsort(-differing_K[present], kind="stable")]
    shown = np.sort(worst[:MATRIX_CLASSES])
    place_K = np.full(n_classes, -1)
    place_K[shown] = np.arange(len(shown))
    inside = (place_K[labels] >= 0) & (place_K[looks] >= 0)
    codes = place_K[labels[inside]] * len(shown) + place_K[looks[inside]]
    counts = np.bincount(codes, minlength=len(shown) ** 2).reshape(len(shown), len(shown))
    shares = counts / totals_K[shown][:, None]
    return {
        "names": [names[label] for label in shown],
        "rows": shares.tolist(),
        "others": (1 - shares.sum(1)).clip(0, 1).tolist(),
        "left_out": len(present) - len(shown),
    }


def transition_matrix(
    transition_KK: npt.NDArray[np.float64], names: Sequence[str]
) -> dict[str, Any]:
    """Cuts an estimated P(given | true) to the classes with most noise, as `label_matrix` does.

    Args:
        transition_KK: (K, K) a row per true class, each summing to 1.
        names: K class names.
    """
    noisiest = np.argsort(np.diag(transition_KK), kind="stable")
    shown = np.sort(noisiest[:MATRIX_CLASSES])
    shares = transition_KK[np.ix_(shown, shown)]
    return {
        "names": [names[label] for label in shown],
        "rows": shares.tolist(),
        "others": (1 - shares.sum(1)).clip(0, 1).tolist(),
        "left_out": len(names) - len(shown),
    }
