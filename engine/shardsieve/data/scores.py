"""The scores table: one row per sample of the input, the answer to "what became of it".

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import KEPT_REASONS, Reason
from shardsieve.data.table import reason_words, replace_file


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known beside loss and p_clean; NaN and -1 where nothing is.

    All but the last four is what classifiers that never saw a label say of it.

    Attributes:
        agreement_N: (N,) f32, probability of the given label, the label unseen.
        margin_N: (N,) f32, that minus the largest probability of another class, in [-1, 1].
        suggested_N: (N,) i32, the most probable class, the given label taken into account.
        confidence_N: (N,) f32, its probability.
        neighbours_N: (N,) f32, share of the nearest neighbours with the same label as given.
        distance_N: (N,) f32, how far from the nearest class centre, median of all samples 1.
        out_of_class_N: (N,) f32 in [0, 1], probability that the image shows none of the classes.
        duplicate_of_N: (N,) i64, row of the first sample with the same picture.
        near_duplicate_of_N: (N,) i64, row of an earlier sample with nearly the same picture.
        leak_of_N: N keys of the held-out sample with the same image, null for none.
        leak_label_N: (N,) i32, the label that it has there.
    """

    agreement_N: npt.NDArray[np.float32]
    margin_N: npt.NDArray[np.float32]
    suggested_N: npt.NDArray[np.int32]
    confidence_N: npt.NDArray[np.float32]
    neighbours_N: npt.NDArray[np.float32]
    distance_N: npt.NDArray[np.float32]
    out_of_class_N: npt.NDArray[np.float32]
    duplicate_of_N: npt.NDArray[np.int64]
    near_duplicate_of_N: npt.NDArray[np.int64]
    leak_of_N: pa.Array
    leak_label_N: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, n_samples: int) -> Evidence:
        """Returns columns in which nothing is said."""
        agreement_N, margin_N, confidence_N, neighbours_N, distance_N, out_of_class_N = np.full(
            (6, n_samples), np.nan, np.float32
        )
        suggested_N, leak_label_N = np.full((2, n_samples), -1, np.int32)
        return cls(
            agreement_N,
            margin_N,
            suggested_N,
            confidence_N,
            neighbours_N,
            distance_N,
            out_of_class_N,
            duplicate_of_N=np.full(n_samples, -1, np.int64),
            near_duplicate_of_N=np.full(n_samples, -1, np.int64),
            leak_of_N=pa.nulls(n_samples, pa.string()),
            leak_label_N=leak_label_N,
        )


def scores_table(
    index: SampleIndex,
    losses: LossTable,
    p_clean_N: npt.NDArray[np.float64],
    reason_N: npt.NDArray[np.uint8],
    detail_N: pa.ChunkedArray,
    evidence: Evidence | None = None,
    final_label_N: npt.NDArray[np.int32] | None = None,
) -> pa.Table:
    """Puts the columns of all stages side by side.

    Args:
        index: Key, shard, offset and label.
        losses: Loss (nats), margin and predicted label.
        p_clean_N: (N,) posterior, NaN where a sample was not judged.
        reason_N: (N,) u8 `Reason`.
        detail_N: N sentences about unreadable samples, null elsewhere.
        evidence: What else is known, None for nothing.
        final_label_N: (N,) label after review, -1 where there is none; None: nobody reviewed.

    Returns:
        Columns key, shard (number), offset (bytes), label, loss, margin, pred, p_clean, kept,
        reason, detail, then those of `Evidence`, and final_label; null where there is no value.
    """
    unjudged = ~np.isfinite(losses.loss_N)
    if evidence is None:
        evidence = Evidence.empty(len(index))
    label_N = index.label_N
    if final_label_N is None:
        final_label_N = label_N
    return pa.table(
        {
            "key": index.keys_N,
            "shard": pa.array(index.numbers("shard")),
            "offset": pa.array(index.numbers("offset")),
            "label": pa.array(label_N, mask=label_N < 0),
            "loss": pa.array(losses.loss_N, mask=unjudged),
            "margin": pa.array(losses.margin_N, mask=unjudged),
            "pred": pa.array(losses.pred_N, mask=unjudged),
            "p_clean": pa.array(p_clean_N, mask=np.isnan(p_clean_N)),
            "kept": pa.array(np.isin(reason_N, KEPT_REASONS)),
            "reason": reason_words(reason_N),
            "detail": detail_N,
            "agreement": _known(evidence.agreement_N),
            "margin_unseen": _known(evidence.margin_N),
            "suggested_label": pa.array(evidence.suggested_N, mask=evidence.suggested_N < 0),
            "suggestion_confidence": _known(evidence.confidence_N),
            "neighbour_agreement": _known(evidence.neighbours_N),
            "distance": _known(evidence.distance_N),
            "out_of_class": _known(evidence.out_of_class_N),
            "duplicate_of": _rows(evidence.duplicate_of_N),
            "near_duplicate_of": _rows(evidence.near_duplicate_of_N),
            "leak_of": evidence.leak_of_N,
            "leak_label": pa.array(evidence.leak_label_N, mask=evidence.leak_label_N < 0),
            "final_label": pa.array(final_label_N, mask=final_label_N < 0),
        }
    )


def reason_numbers(words: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Turns a column of reasons back into `Reason` numbers.

    Raises:
        KeyError: A word is none of a `Reason`.
    """
    if isinstance(words, pa.ChunkedArray):
        empty = np.empty(0, np.uint8)
        return np.concatenate([empty, *(reason_numbers(chunk) for chunk in words.chunks)])
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    values = [Reason[word.upper()] for word in words.dictionary.to_pylist()]
    numbers: npt.NDArray[np.uint8] = np.array(values, np.uint8)[words.indices.to_numpy()]
    return numbers


@dataclass(frozen=True, slots=True)
class Decisions:
    """The columns of a scores table that say what becomes of each sample.

    Attributes:
        kept_N: (N,) samples that are kept.
        reason_N: (N,) u8 `Reason`.
        p_clean_N: (N,) f64 posterior, NaN where a sample was not judged.
        final_label_N: (N,) i32 label after review, -1 where there is none.
    """

    kept_N: npt.NDArray[np.bool_]
    reason_N: npt.NDArray[np.uint8]
    p_clean_N: npt.NDArray[np.float64]
    final_label_N: npt.NDArray[np.int32]

    @classmethod
    def read(cls, path: Path) -> Decisions:
        """Reads these columns of `scores.parquet` and no other."""
        table = pq.read_table(path, columns=["reason", "p_clean", "final_label"])
        reason_N = reason_numbers(table.column("reason"))
        p_clean_N = pc.fill_null(table.column("p_clean"), np.nan).to_numpy()
        final_label_N = pc.fill_null(table.column("final_label"), -1).to_numpy()
        return cls(np.isin(reason_N, KEPT_REASONS), reason_N, p_clean_N, final_label_N)


@dataclass(frozen=True, slots=True)
class Suggestions:
    """The columns of a scores table that say what a sample may rather show.

    Attributes:
        reason_N: (N,) u8 `Reason`.
        p_clean_N: (N,) f32 probability of the label as given, NaN where a sample was not judged.
        suggested_N: (N,) i32, -1 where the recipe suggests nothing.
        confidence_N: (N,) f32, probability of the suggested label, NaN where there is none.
    """

    reason_N: npt.NDArray[np.uint8]
    p_clean_N: npt.NDArray[np.float32]
    suggested_N: npt.NDArray[np.int32]
    confidence_N: npt.NDArray[np.float32]

    @classmethod
    def read(cls, path: Path) -> Suggestions:
        """Reads these columns of `scores.parquet` and no other."""
        names = ["reason", "p_clean", "suggested_label", "suggestion_confidence"]
        table = pq.read_table(path, columns=names)
        p_clean_N = pc.fill_null(table.column("p_clean"), np.nan).to_numpy()
        confidence = table.column("suggestion_confidence").cast(pa.float32())
        return cls(
            reason_numbers(table.column("reason")),
            p_clean_N.astype(np.float32),
            pc.fill_null(table.column("suggested_label"), -1).to_numpy().astype(np.int32),
            pc.fill_null(confidence, np.float32("nan")).to_numpy(),
        )


def _known(values_N: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(values_N, mask=np.isnan(values_N))


def _rows(rows_N: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(rows_N, mask=rows_N < 0)


def list_unreadable(scores: Path, samples: SampleIndex, most: int = 10_000) -> list[dict[str, Any]]:
    """Lists the samples without a usable image or label, for the manifest.

    Args:
        scores: `scores.parquet`, read in batches.
        samples: Where the shards are.
        most: The list ends there; the counts are whole.
    """
    words = [reason.word for reason in Reason if reason.group == "unreadable"]
    listed: list[dict[str, Any]] = []
    with pq.ParquetFile(scores) as file:
        for batch in file.iter_batches(columns=["key", "shard", "offset", "reason", "detail"]):
            bad = pc.is_in(batch.column("reason").cast(pa.string()), value_set=pa.array(words))
            listed += batch.filter(bad).to_pylist()
            if len(listed) >= most:
                break
    listed = listed[:most]
    for row in listed:
        row["shard"] = str(samples.shards[row["shard"]].path)
    return listed


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a parquet file whole or not at all; the same table gives the same bytes."""
    temporary = path.with_name(path.name + ".part")
    pq.write_table(table, temporary, compression="zstd")
    replace_file(temporary, path)
