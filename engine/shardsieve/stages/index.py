"""index: shards -> SampleIndex. One pass over the tar headers; images are not touched.

Shapes: N samples, K classes, B rows of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import IndexConfig
from shardsieve.data.fill import ColumnFile, TextSize, text_size
from shardsieve.data.index import SCHEMA, SampleIndex
from shardsieve.data.location import ShardPath
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.engines.executor import Executor
from shardsieve.errors import DataError, LabelError
from shardsieve.indexing import ShardRows, read_shards
from shardsieve.progress import Progress
from shardsieve.shards.labels import find_classes, read_classes
from shardsieve_kernels.tar_scan import ScanBackend

_EXAMPLES = 5
_LABELS = pa.schema([("given", pa.string()), ("is_name", pa.bool_()), ("count", pa.int64())])


def index(
    shards: Sequence[ShardPath],
    config: IndexConfig,
    *,
    out: Path,
    progress: Progress,
    classes: tuple[str, ...] | None = None,
    previous: Path | None = None,
    threads: int = 1,
    backend: ScanBackend = "cpu",
    executor: Executor | None = None,
) -> StageResult:
    """Finds every sample of the shards, where its bytes lie and which label it was given.

    The rows of a shard are kept in a file of their own: a shard that has not changed since
    `previous`, or since this call was interrupted, is not read again.

    Args:
        shards: Paths of the tars; their order is the row order of everything that follows.
        config: What counts as image and label.
        out: Folder that gets `samples.arrow`, `shards.json` and `parts`.
        progress: Where to report.
        classes: Class names that are known already, from another index; else `config` says.
        previous: Folder of an earlier index, whose rows are used for unchanged shards.
        threads: Shards that are read side by side.
        backend: Which kernel scans.
        executor: Who reads the shards; default: this process.

    Returns:
        Counts of samples by reason, and notes on damaged shards.

    Raises:
        ShardError: A shard cannot be read as a tar.
        LabelError: Labels and classes do not fit together.
        DataError: More than `config.max_bad_fraction` of the samples cannot be used.
    """
    if classes is None and config.classes is not None:
        classes = read_classes(config.classes)
    rows = read_shards(shards, config, out, previous, threads, progress, executor, backend)
    if not rows.n_samples:
        raise DataError(
            f"{len(shards)} shards hold no sample: no member has a key and an extension"
        )
    classes = _classes(rows, classes, config)
    tally = _Tally.of(rows, classes)
    _refuse_mostly_bad(tally, config)
    with ColumnFile(out / "samples.arrow", SCHEMA, rows.n_samples, tally.texts) as file:
        for _, batch in rows.finished(classes):
            file.append(batch.select(SCHEMA.names))
    SampleIndex.write_shards(out, tuple(rows.refs), classes)
    return _summary(rows, tally, classes)


def _classes(
    rows: ShardRows, classes: tuple[str, ...] | None, config: IndexConfig
) -> tuple[str, ...]:
    if classes is not None:
        if config.classes is not None and config.n_classes not in (None, len(classes)):
            raise LabelError(
                f"index.n_classes is {config.n_classes} but index.classes names {len(classes)}; "
                "leave one of them out"
            )
        return classes
    labels = _LABELS.empty_table()
    for _, batch in rows.given():
        found = pa.table({"given": batch.column("given"), "is_name": batch.column("is_name")})
        found = found.append_column("count", pa.array(np.ones(len(found), np.int64)))
        labels = _merged(pa.concat_tables([labels, _merged(found)]))
    columns = (labels.column("given"), labels.column("is_name"))
    return find_classes(*columns, rows.n_samples, config.n_classes, labels.column("count"))


def _merged(labels: pa.Table) -> pa.Table:
    """Adds up equal labels, in the order in which they occur first."""
    grouped = labels.group_by(["given", "is_name"], use_threads=False)
    return (
        grouped.aggregate([("count", "sum")])
        .rename_columns({"count_sum": "count"})
        .select(_LABELS.names)
    )


@dataclass(slots=True)
class _Tally:
    """What must be known of all rows before the index is written.

    Attributes:
        key_hash_N: Hashes of the keys, sorted.
        reasons: How often each reason occurs.
        per_class_K: Usable samples of each class.
        texts: Size of the columns of text.
        examples: Some rows that cannot be used: key and why.
    """

    key_hash_N: npt.NDArray[np.uint64]
    per_class_K: npt.NDArray[np.int64]
    reasons: Counter[int] = field(default_factory=Counter)
    texts: dict[str, TextSize] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: ShardRows, classes: Sequence[str]) -> _Tally:
        n_classes = len(classes)
        tally = cls(np.empty(rows.n_samples, np.uint64), np.zeros(n_classes, np.int64))
        start, size = 0, {"key": [0, 0], "detail": [0, 0]}
        for _, batch in rows.finished(classes):
            end = start + batch.num_rows
            tally.key_hash_N[start:end] = batch.column("key_hash").to_numpy()
            start = end
            for name, total in size.items():
                total[:] = (
                    a + b for a, b in zip(total, text_size(batch.column(name)), strict=True)
                )
            reason_B, label_B = batch.column("reason").to_numpy(), batch.column("label").to_numpy()
            values, counts = np.unique(reason_B, return_counts=True)
            tally.reasons.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            usable_B = reason_B == Reason.KEPT
            tally.per_class_K += np.bincount(label_B[usable_B], minlength=n_classes)
            bad = np.flatnonzero(~usable_B)[: _EXAMPLES - len(tally.examples)]
            tally.examples += batch.select(["key", "detail"]).take(pa.array(bad)).to_pylist()
        tally.key_hash_N.sort()
        tally.texts = {name: TextSize(*total) for name, total in size.items()}
        return tally

    @property
    def n_bad(self) -> int:
        return self.reasons.total() - self.reasons[Reason.KEPT]


def _refuse_mostly_bad(tally: _Tally, config: IndexConfig) -> None:
    n_samples = tally.reasons.total()
    if tally.n_bad <= config.max_bad_fraction * n_samples:
        return
    examples = "; ".join(f"{row['key']!r}: {row['detail']}" for row in tally.examples)
    raise DataError(
        f"{tally.n_bad:,} of {n_samples:,} samples have no usable image or label, "
        f"more than index.max_bad_fraction = {config.max_bad_fraction}. The first: {examples}. "
        "Check index.image, --labels and --classes, or raise the limit"
    )


def _repeated_keys(
    rows: ShardRows, key_hash_N: npt.NDArray[np.uint64]
) -> tuple[int, dict[str, Any]]:
    """Returns how many samples repeat the key of an earlier one, and where the first of them lie.

    Equal hashes only say which keys to compare.
    """
    suspects = np.unique(key_hash_N[1:][key_hash_N[1:] == key_hash_N[:-1]])
    if not len(suspects):
        return 0, {}
    found = []
    for shard, batch in rows.given():
        places = np.searchsorted(suspects, batch.column("key_hash").to_numpy())
        places[places == len(suspects)] = 0
        is_suspect = suspects[places] == batch.column("key_hash").to_numpy()
        keys = batch.column("key").filter(pa.array(is_suspect))
        found.append(pa.table({"key": keys, "shard": pa.array(np.full(len(keys), shard))}))
    table = pa.concat_tables(found)
    by_shard = table.group_by(["key", "shard"], use_threads=False).aggregate([([], "count_all")])
    by_key = by_shard.group_by("key", use_threads=False).aggregate(
        [("count_all", "sum"), ("shard", "list")]
    )
    n_repeated = table.num_rows - by_key.num_rows
    if not n_repeated:
        return 0, {}
    twice = by_key.filter(pc.greater(by_key.column("count_all_sum"), 1)).slice(0, 10)
    return n_repeated, {
        "within_a_shard": table.num_rows - by_shard.num_rows,
        "across_shards": by_shard.num_rows - by_key.num_rows,
        "first": [
            {"key": row["key"], "samples": row["count_all_sum"], "shards": row["shard_list"][:10]}
            for row in twice.to_pylist()
        ],
    }


def _summary(rows: ShardRows, tally: _Tally, classes: Sequence[str]) -> StageResult:
    empty = [classes[label] for label in np.flatnonzero(tally.per_class_K == 0).tolist()]
    repeated, where = _repeated_keys(rows, tally.key_hash_N)
    notes = [f"{ref.path.name}: {text}" for ref in rows.refs for text in ref.damage]
    if empty:
        names = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
        notes.append(f"{len(empty)} of {len(classes)} classes have no sample: {names}")
    if repeated:
        notes.append(
            f"{repeated:,} samples repeat a key that an earlier sample has; "
            "they are told apart by shard and offset"
        )
    unusable = sorted(set(tally.reasons) - {Reason.KEPT})
    counts = {
        "samples": rows.n_samples,
        "shards": len(rows.refs),
        "classes": len(classes),
        "readable": tally.reasons[Reason.KEPT],
        **{Reason(reason).word: tally.reasons[reason] for reason in unusable},
        "repeated_keys": repeated,
        "other_members": sum(ref.other_members for ref in rows.refs),
    }
    return StageResult(
        counts=counts, facts={"repeated_keys": where} if repeated else {}, notes=notes
    )
