"""How right a selection was, where the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

TAUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def score_selection(scores: pa.Table, truth: Path) -> dict[str, float]:
    """Compares what was kept with what is clean.

    Args:
        scores: The run's scores; only judged samples count.
        truth: Parquet with `key` and `clean_label`.

    Returns:
        Noise before and after, precision, recall and F1 of both classes, and the AUROC of finding
        a wrong label by 1 - p_clean and by the loss.
    """
    table = pq.read_table(truth, columns=["key", "clean_label"])
    judged = scores.filter(pc.is_valid(scores.column("p_clean")))
    positions = pc.index_in(judged.column("key"), value_set=table.column("key").combine_chunks())
    true_label = table.column("clean_label").combine_chunks().take(positions.combine_chunks())
    clean = pc.equal(judged.column("label"), true_label).to_numpy(zero_copy_only=False)
    kept = judged.column("kept").to_numpy(zero_copy_only=False)
    p_clean = judged.column("p_clean").to_numpy()
    result = {
        "samples": float(len(kept)),
        "noise_before": float(1 - clean.mean()),
        "noise_after": float(1 - clean[kept].mean()) if kept.any() else float("nan"),
        "kept_fraction": float(kept.mean()),
    }
    for name, actual, found in (("clean", clean, kept), ("noisy", ~clean, ~kept)):
        precision, recall, f1, _ = precision_recall_fscore_support(
            actual, found, average="binary", zero_division=0.0
        )
        result |= {
            f"{name}_precision": float(precision),
            f"{name}_recall": float(recall),
            f"{name}_f1": float(f1),
        }
    if clean.any() and not clean.all():
        result["auroc_p_clean"] = float(roc_auc_score(~clean, 1 - p_clean))
        result["auroc_loss"] = float(roc_auc_score(~clean, judged.column("loss").to_numpy()))
    return {name: round(value, 6) for name, value in result.items() if not np.isnan(value)}


def selection_figures(
    p_clean_N: npt.NDArray[np.float64],
    keep_N: npt.NDArray[np.bool_],
    right_N: npt.NDArray[np.bool_],
    label_N: npt.NDArray[np.integer],
    calibrated: bool,
) -> dict[str, float | None]:
    """Figures of one method in `bench quality`.

    Args:
        p_clean_N: The higher, the surer the label.
        keep_N: What the method keeps.
        right_N: What is right.
        label_N: Given labels.
        calibrated: Whether p_clean claims to be a probability; else it has no calibration error.

    Returns:
        Precision, recall and F1 of both classes, AUROC and average precision of finding a wrong
        label, share of wrong labels among the kept, calibration error, kept fraction, and the size
        of the smallest class kept.
    """
    figures: dict[str, float | None] = {}
    for name, actual, found in (("clean", right_N, keep_N), ("noisy", ~right_N, ~keep_N)):
        scores = precision_recall_fscore_support(actual, found, average="binary", zero_division=0.0)
        for part, value in zip(("precision", "recall", "f1"), scores, strict=False):
            figures[f"{name}_{part}"] = float(value)
    mixed = right_N.any() and not right_N.all()
    figures["auroc"] = float(roc_auc_score(~right_N, -p_clean_N)) if mixed else None
    figures["ap"] = float(average_precision_score(~right_N, -p_clean_N)) if mixed else None
    figures["noise_left"] = float(1 - right_N[keep_N].mean()) if keep_N.any() else None
    figures["ece"] = calibration_error(p_clean_N, right_N) if calibrated else None
    figures["kept"] = float(keep_N.mean())
    figures["smallest_class"] = float(
        np.bincount(label_N[keep_N], minlength=int(label_N.max()) + 1).min()
    )
    return figures


def calibration_error(
    p_clean_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Expected calibration error: mean |stated - realised| over bins of equal width."""
    bin_N = np.minimum((p_clean_N * bins).astype(np.int64), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    stated_B = np.bincount(bin_N, p_clean_N, minlength=bins)
    realised_B = np.bincount(bin_N, right_N, minlength=bins)
    return float(np.abs(stated_B - realised_B).sum() / max(count_B.sum(), 1))


def by_tau(
    p_clean_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_]
) -> dict[str, dict[str, float | None]]:
    """What p_clean > tau would keep, for several tau.

    Returns:
        By tau: kept fraction, share of wrong labels among the kept (None if nothing is kept), F1 of
        the wrong ones.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for tau in TAUS:
        keep_N = p_clean_N > tau
        figures[f"{tau:g}"] = {
            "kept": float(keep_N.mean()),
            "noise_left": float(1 - right_N[keep_N].mean()) if keep_N.any() else None,
            "noisy_f1": float(f1_score(~right_N, ~keep_N, zero_division=0.0)),
        }
    return figures
