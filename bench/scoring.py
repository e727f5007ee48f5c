"""How right a selection was, where the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score


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
