"""index: shards -> SampleIndex. One pass over the tar headers; images are not touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import IndexConfig
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.data.table import column, read_ipc, reason_words, write_ipc
from shardsieve.errors import DataError, LabelError
from shardsieve.progress import Progress
from shardsieve.shards.labels import (
    Given,
    JsonLabels,
    MemberLabels,
    TableLabels,
    find_classes,
    label_source,
    read_classes,
    resolve_labels,
)
from shardsieve.shards.samples import TarSample, describe_damage, scan_samples, stat_shard
from shardsieve.shards.tar import open_tar

_RAW_SCHEMA = pa.schema([*SCHEMA, ("given", pa.string()), ("is_name", pa.bool_())])
# Batches of the raw table: bounds the Python objects alive while one shard is scanned.
_ROWS_PER_BATCH = 50_000


def index(
    shards: Sequence[Path],
    config: IndexConfig,
    *,
    out: Path,
    progress: Progress,
    classes: tuple[str, ...] | None = None,
) -> StageResult:
    """Finds every sample of the shards, where its bytes lie and which label it was given.

    Args:
        shards: Paths of the tars; their order is the row order of everything that follows.
        config: What counts as image and label.
        out: Folder that gets `samples.arrow` and `shards.json`.
        progress: Where to report.
        classes: Class names that are known already, from another index; else `config` says.

    Returns:
        Counts of samples by reason, and notes on damaged shards.

    Raises:
        ShardError: A shard cannot be read as a tar.
        LabelError: Labels and classes do not fit together.
        DataError: More than `config.max_bad_fraction` of the samples cannot be used.
    """
    source = label_source(config.labels)
    if classes is None and config.classes is not None:
        classes = read_classes(config.classes)
    raw_file = out / "raw.arrow"
    refs = []
    with (
        progress.track("index", len(shards), "shards") as advance,
        pa.ipc.new_file(raw_file, _RAW_SCHEMA) as writer,
    ):
        for number, path in enumerate(shards):
            refs.append(_scan_shard(path, number, source, config.image, writer))
            advance(1)
    raw = read_ipc(raw_file)
    if not raw.num_rows:
        raise DataError(
            f"{len(shards)} shards hold no sample: no member has a key and an extension"
        )
    if isinstance(source, TableLabels):
        raw = _labels_of_table(raw, source)
    table, classes = _resolve(raw, classes, config)
    raw_file.unlink()
    _refuse_mostly_bad(table, classes, config)
    write_ipc(out / "samples.arrow", table)
    SampleIndex.write_shards(out, tuple(refs), classes)
    return _summary(table, refs, classes)


def _scan_shard(
    path: Path,
    number: int,
    source: MemberLabels | JsonLabels | TableLabels,
    image_extensions: Sequence[str],
    writer: pa.ipc.RecordBatchFileWriter,
) -> ShardRef:
    ref = stat_shard(path)
    scan = open_tar(path)
    n_samples = 0
    for samples in _batches(scan_samples(scan, path)):
        n_samples += len(samples)
        given = [_given(sample, source, scan.buffer) for sample in samples]
        writer.write_batch(_raw_batch(samples, given, number, image_extensions))
    return ShardRef(
        path, ref.size_bytes, ref.mtime_ns, n_samples, scan.others, describe_damage(scan)
    )


def _batches(samples: Iterator[TarSample]) -> Iterator[list[TarSample]]:
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == _ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _given(
    sample: TarSample, source: MemberLabels | JsonLabels | TableLabels, buffer: Any
) -> Given:
    if isinstance(source, TableLabels) or sample.reason != Reason.KEPT:
        return Given(None)
    return source.of(sample, buffer)


def _raw_batch(
    samples: list[TarSample],
    given: list[Given],
    shard: int,
    image_extensions: Sequence[str],
) -> pa.RecordBatch:
    images = [sample.image(image_extensions) for sample in samples]
    details = [sample.detail or label.detail for sample, label in zip(samples, given, strict=True)]
    reasons = []
    for position, (sample, image) in enumerate(zip(samples, images, strict=True)):
        reason = sample.reason
        if reason == Reason.KEPT and image is None:
            reason = Reason.NO_IMAGE
            details[position] = (
                f"no part ending in .{'/.'.join(image_extensions)} "
                f"(has: {', '.join(sample.members)})"
            )
        reasons.append(reason)
    columns = {
        "key": pa.array([sample.key for sample in samples], pa.string()),
        "shard": np.full(len(samples), shard, np.int32),
        "offset": np.array([sample.start for sample in samples], np.int64),
        "size": np.array([sample.end - sample.start for sample in samples], np.int64),
        "image_offset": np.array([image.data if image else -1 for image in images], np.int64),
        "image_size": np.array([image.size if image else 0 for image in images], np.int64),
        "label": np.full(len(samples), -1, np.int32),
        "reason": np.array(reasons, np.uint8),
        "detail": pa.array(details, pa.string()),
        "given": pa.array([label.text for label in given], pa.string()),
        "is_name": pa.array([label.is_name for label in given], pa.bool_()),
    }
    return pa.record_batch([pa.array(values) for values in columns.values()], schema=_RAW_SCHEMA)


def _labels_of_table(raw: pa.Table, source: TableLabels) -> pa.Table:
    given, are_names = source.of_keys(raw.column("key"))
    absent = pc.if_else(
        pc.is_null(given),
        f"{source.path.name} has no label for this key",
        pa.scalar(None, pa.string()),
    )
    detail = pc.coalesce(raw.column("detail"), absent)
    is_name = pa.array(np.full(raw.num_rows, are_names))
    columns = {"given": given, "detail": detail, "is_name": is_name}
    for name, values in columns.items():
        raw = raw.set_column(_RAW_SCHEMA.get_field_index(name), name, values)
    return raw


def _resolve(
    raw: pa.Table, classes: tuple[str, ...] | None, config: IndexConfig
) -> tuple[pa.Table, tuple[str, ...]]:
    given, is_name = raw.column("given"), raw.column("is_name")
    if classes is None:
        classes = find_classes(given, is_name, raw.num_rows, config.n_classes)
    elif config.classes is not None and config.n_classes not in (None, len(classes)):
        raise LabelError(
            f"index.n_classes is {config.n_classes} but index.classes names {len(classes)}; "
            "leave one of them out"
        )
    label_N, label_reason_N = resolve_labels(given, is_name, classes)
    reason_N = column(raw, "reason")
    judged = reason_N == Reason.KEPT
    outside = judged & (label_reason_N == Reason.LABEL_OUTSIDE)
    reason_N = np.where(judged, label_reason_N, reason_N)
    sentences = pc.binary_join_element_wise(
        "the label is", given, f"and there are {len(classes)} classes", " "
    )
    detail = pc.if_else(pa.array(outside), sentences, raw.column("detail"))
    table = raw.select(SCHEMA.names)
    for name, values in (("label", label_N), ("reason", reason_N), ("detail", detail)):
        position = SCHEMA.get_field_index(name)
        column_values = values if isinstance(values, pa.ChunkedArray) else pa.array(values)
        table = table.set_column(position, SCHEMA.field(name), column_values)
    return table, classes


def _refuse_mostly_bad(table: pa.Table, classes: Sequence[str], config: IndexConfig) -> None:
    bad = np.flatnonzero(column(table, "reason") != Reason.KEPT)
    if len(bad) <= config.max_bad_fraction * table.num_rows:
        return
    rows = table.select(["key", "detail"]).take(pa.array(bad[:5])).to_pylist()
    examples = "; ".join(f"{row['key']!r}: {row['detail']}" for row in rows)
    raise DataError(
        f"{len(bad):,} of {table.num_rows:,} samples have no usable image or label, "
        f"more than index.max_bad_fraction = {config.max_bad_fraction}. The first: {examples}. "
        "Check index.image, --labels and --classes, or raise the limit"
    )


def _summary(table: pa.Table, refs: Sequence[ShardRef], classes: Sequence[str]) -> StageResult:
    reason_N = column(table, "reason")
    per_class_K = np.bincount(
        column(table, "label")[reason_N == Reason.KEPT], minlength=len(classes)
    )
    empty = [classes[label] for label in np.flatnonzero(per_class_K == 0).tolist()]
    repeated = table.num_rows - pc.count_distinct(table.column("key")).as_py()
    notes = [f"{ref.path.name}: {text}" for ref in refs for text in ref.damage]
    if empty:
        names = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
        notes.append(f"{len(empty)} of {len(classes)} classes have no sample: {names}")
    if repeated:
        notes.append(
            f"{repeated:,} samples repeat a key that an earlier sample has; "
            "they are told apart by shard and offset"
        )
    unusable = pc.value_counts(reason_words(reason_N[reason_N != Reason.KEPT])).to_pylist()
    counts = {
        "samples": table.num_rows,
        "shards": len(refs),
        "classes": len(classes),
        "readable": int(np.count_nonzero(reason_N == Reason.KEPT)),
        **{str(row["values"]): int(row["counts"]) for row in unusable},
        "repeated_keys": repeated,
        "other_members": sum(ref.other_members for ref in refs),
    }
    return StageResult(counts=counts, notes=notes)
