"""The scores as arrays, and what the page counts in them.

Shapes: N samples, K classes, R removed samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import EXPLANATIONS, Reason
from shardsieve.data.scores import reason_numbers
from shardsieve.data.table import count_words

LISTED_UNREADABLE = 200
# What the page looks at; keys and places are the index's, which is mapped and not read.
_COLUMNS = (
    "label",
    "pred",
    "loss",
    "margin",
    "p_clean",
    "kept",
    "reason",
    "detail",
    "suggested_label",
    "suggestion_confidence",
    "out_of_class",
    "duplicate_of",
    "near_duplicate_of",
    "leak_of",
    "leak_label",
)


def read_scores(path: Path) -> pa.Table:
    """Reads the columns of `scores.parquet` that the page needs, those that are there."""
    there = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[name for name in _COLUMNS if name in there])


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The columns of the scores table that are needed row by row.

    Attributes:
        label_N: (N,) i32 label as given, -1 where there is none.
        pred_N: (N,) i32 label as predicted, -1 where a sample was not judged.
        loss_N: (N,) f32 cross entropy, nats; NaN where a sample was not judged.
        p_clean_N: (N,) f64 posterior, NaN where a sample was not judged.
        kept_N: (N,) samples that are kept.
        removed_N: (N,) samples that were judged and not kept.
    """

    label_N: npt.NDArray[np.int32]
    pred_N: npt.NDArray[np.int32]
    loss_N: npt.NDArray[np.float32]
    p_clean_N: npt.NDArray[np.float64]
    kept_N: npt.NDArray[np.bool_]
    removed_N: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, scores: pa.Table) -> Verdicts:
        """Takes the columns out of a scores table."""
        return cls(
            _filled(scores, "label", -1).astype(np.int32, copy=False),
            _filled(scores, "pred", -1).astype(np.int32, copy=False),
            _filled(scores, "loss", np.nan).astype(np.float32, copy=False),
            _filled(scores, "p_clean", np.nan).astype(np.float64, copy=False),
            scores.column("kept").to_numpy(),
            in_group(scores, "removed").to_numpy(),
        )

    @property
    def judged_N(self) -> npt.NDArray[np.bool_]:
        """Samples that the selection decided on."""
        return self.kept_N | self.removed_N


def in_group(scores: pa.Table, group: str) -> pa.ChunkedArray:
    """Returns which rows have a reason of this group: kept, removed or unreadable."""
    wanted = [reason for reason in Reason if reason.group == group]
    return pa.chunked_array([np.isin(reason_numbers(scores.column("reason")), wanted)])


def count_groups(scores: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Counts the samples by reason.

    Returns:
        For kept, removed and unreadable: reason, count and explanation, in the order of `Reason`.
    """
    counts = count_words(scores.column("reason"))
    groups: dict[str, list[dict[str, Any]]] = {"kept": [], "removed": [], "unreadable": []}
    for reason in Reason:
        if count := counts.get(reason.word, 0):
            explanation = EXPLANATIONS[reason]
            row = {"reason": reason.word, "count": count, "explanation": explanation}
            groups[reason.group].append(row)
    return groups


def list_unreadable(scores: pa.Table, index: SampleIndex) -> list[dict[str, Any]]:
    """Returns shard file name, key, reason and detail of the first unreadable samples."""
    rows = np.flatnonzero(in_group(scores, "unreadable").to_numpy())[:LISTED_UNREADABLE]
    listed: list[dict[str, Any]] = scores.select(["reason", "detail"]).take(rows).to_pylist()
    keys = index.keys_N.take(rows).to_pylist()
    shards = index.numbers("shard")[rows].tolist()
    for row, key, shard in zip(listed, keys, shards, strict=True):
        row |= {"key": key, "shard": index.shards[shard].path.name}
    return listed


def class_rows(
    verdicts: Verdicts,
    classes: pa.Table,
    judged_by: Mapping[str, str],
    noise_K3: npt.NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Returns one row per class that has a judged sample, the largest removed share first.

    Args:
        verdicts: The scores.
        classes: The table of the stage `select`.
        judged_by: What to call each rule.
        noise_K3: (K, 3) estimated share of wrong labels, lower and upper end.

    Returns:
        Label, name, samples, kept, removed, share, estimated noise with lower and upper end, rule
        and its name, why, and the class that most of the removed samples are predicted to be with
        their number.
    """
    often = _predicted_instead(verdicts, classes.num_rows)
    columns = ["label", "name", "samples", "kept", "rule", "why"]
    rows: list[dict[str, Any]] = classes.select(columns).to_pylist()
    rows = [row for row in rows if row["samples"]]
    names = classes.column("name").to_pylist()
    for row in rows:
        row["removed"] = row["samples"] - row["kept"]
        row["share"] = row["removed"] / row["samples"]
        row["noise"], row["low"], row["high"] = noise_K3[row["label"]].tolist()
        row["judged_by"] = judged_by[row["rule"]]
        pred, count = often.get(row["label"], (-1, 0))
        row["instead"] = names[pred] if count else None
        row["instead_count"] = count
    return sorted(rows, key=lambda row: (-row["share"], row["label"]))


def predicted_pairs(verdicts: Verdicts, names: tuple[str, ...], most: int) -> dict[str, Any]:
    """Counts what the removed samples are called and what the probe takes them for.

    Args:
        verdicts: The scores.
        names: K class names.
        most: How many pairs to list.

    Returns:
        `pairs` (given, predicted, count, share of all removed and of the largest pair, the most
        frequent first), `others`
        (pairs not listed), and `agreeing`: removed samples for which both are the same.
    """
    labels, preds, counts = _count_pairs(verdicts, len(names))
    differing = labels != preds
    order = np.lexsort((preds[differing], labels[differing], -counts[differing]))
    total = int(counts.sum())
    listed = [
        {
            "given": names[labels[differing][at]],
            "predicted": names[preds[differing][at]],
            "count": int(counts[differing][at]),
            "share": int(counts[differing][at]) / total,
            "of_largest": int(counts[differing][at]) / int(counts[differing].max()),
        }
        for at in order[:most]
    ]
    return {
        "pairs": listed,
        "others": len(order) - len(listed),
        "agreeing": int(counts[~differing].sum()),
    }


def _count_pairs(
    verdicts: Verdicts, n_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    labels_R = verdicts.label_N[verdicts.removed_N].astype(np.int64)
    codes, counts = np.unique(
        labels_R * n_classes + verdicts.pred_N[verdicts.removed_N], return_counts=True
    )
    return codes // n_classes, codes % n_classes, counts


def _predicted_instead(verdicts: Verdicts, n_classes: int) -> dict[int, tuple[int, int]]:
    """Maps a label to the most frequent other prediction among its removed samples."""
    labels, preds, counts = _count_pairs(verdicts, n_classes)
    often: dict[int, tuple[int, int]] = {}
    for label, pred, count in zip(labels.tolist(), preds.tolist(), counts.tolist(), strict=True):
        if label != pred and count > often.get(label, (-1, 0))[1]:
            often[label] = (pred, count)
    return often


def _filled(scores: pa.Table, name: str, value: float) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = pc.fill_null(scores.column(name), value).to_numpy()
    return filled
