"""write: scores -> filtered shard sets, every kept byte as it was."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from shardsieve.config import WriteConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import REMOVED_REASONS
from shardsieve.data.record import StageResult
from shardsieve.data.scores import Decisions
from shardsieve.data.table import write_text
from shardsieve.data.written import MANIFEST, write_written
from shardsieve.engines.executor import Executor, Job
from shardsieve.engines.local import Local
from shardsieve.errors import DataError, ShardError
from shardsieve.progress import Progress
from shardsieve.shards.copier import Output, ShardCopier, cut, samples_of
from shardsieve.shards.copy import CopiedShard
from shardsieve.shards.journal import Journal
from shardsieve.shards.layout import Layout, lay_out, per_class, within_quota
from shardsieve.shards.samples import stat_shard

if TYPE_CHECKING:
    from shardsieve.shards.upload import Upload

# In a folder of removed shards: the run they came from.
_MARKER = "removed-from.txt"
# Copying is bound by memory or disk, hashing by the processor: a few threads keep both busy.
_MOST_THREADS = 8
_LISTED_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written.

    Attributes:
        sets: The clean set, and the removed one if it is wanted.
        over_quota_N: (N,) clean samples that are left out.
    """

    sets: tuple[Layout, ...]
    over_quota_N: npt.NDArray[np.bool_]


def plan(index: SampleIndex, scores: Path, config: WriteConfig, seed: int) -> Plan:
    """Decides which sample goes into which output shard.

    Args:
        index: The samples.
        scores: `scores.parquet`.
        config: Quotas, order and size of the shards.
        seed: Of the shuffle.
    """
    decisions = Decisions.read(scores)
    clean_N = within_quota(
        decisions.kept_N,
        decisions.final_label_N,
        decisions.p_clean_N,
        cap=config.per_class_cap,
        balance=config.balance,
    )
    masks = {"clean": clean_N}
    if config.removed is not None:
        masks["removed"] = np.isin(decisions.reason_N, REMOVED_REASONS)
    sets = tuple(
        lay_out(
            name,
            index,
            mask,
            shard_samples=config.shard_samples,
            shard_bytes=config.shard_bytes,
            order=config.order,
            seed=seed,
        )
        for name, mask in masks.items()
    )
    return Plan(sets, decisions.kept_N & ~clean_N)


def describe(planned: Plan, index: SampleIndex) -> dict[str, Any]:
    """Says what would come out: per set its shards, samples, bytes, and the same per class."""
    told: dict[str, Any] = {}
    for layout in planned.sets:
        told[layout.name] = {
            "shards": len(layout),
            "samples": len(layout.rows_R),
            "size_bytes": sum(layout.sizes()),
            "classes": per_class(layout, index.label_N, index.classes),
        }
    told["over_quota"] = int(np.count_nonzero(planned.over_quota_N))
    return told


def write(
    index: SampleIndex,
    scores: Path,
    config: WriteConfig,
    *,
    seed: int,
    out: Path,
    run: Path,
    progress: Progress,
    executor: Executor | None = None,
) -> StageResult:
    """Copies the kept samples, and on request the removed ones, into new shards.

    The shards of a set are numbered without gaps, so that `clean-{000000..NNNNNN}.tar` names them
    all. An output shard that an interrupted call of the same identity finished is not written
    again.

    Args:
        index: The samples.
        scores: `scores.parquet`, a row per sample.
        config: Which sets, quotas, order and size of the shards.
        seed: Of the shuffle.
        out: Folder of the clean shards and of `manifest.parquet`.
        run: The run directory, by which `config.removed` is known as ours when it is written again.
        progress: Where to report.
        executor: Who copies the shards; default: this process.

    Returns:
        Counts; a list of all shards with source, samples, size and sha256.

    Raises:
        ShardError: An input shard is gone or changed since it was indexed.
        DataError: `config.removed` or `config.to` cannot be used, or holds foreign shards.
        DiskError: The disk is full or refuses to be written to.
    """
    if config.removed is not None:
        _claim(config.removed, run)
    _refuse_changed(index)
    upload = _upload(config, run)
    planned = plan(index, scores, config, seed)
    folders = {"clean": out, "removed": config.removed or out}
    copied = _copy_all(index, planned.sets, folders, out, config, executor or Local(), progress)
    counts: dict[str, int] = {"samples": len(index)}
    facts: dict[str, list[dict[str, Any]]] = {}
    for layout, shards in zip(planned.sets, copied, strict=True):
        counts[f"{layout.name}_samples"] = sum(shard.samples for shard in shards)
        counts[f"{layout.name}_shards"] = len(shards)
        counts[f"{layout.name}_bytes"] = sum(shard.size_bytes for shard in shards)
        facts[layout.name] = [dataclasses.asdict(shard) for shard in shards]
        _remove_surplus(folders[layout.name], layout)
    if over := int(np.count_nonzero(planned.over_quota_N)):
        counts["over_quota"] = over
    _write_manifest(index, scores, planned.sets, out)
    if upload is not None:
        upload.put(out / MANIFEST)
        upload.finish({shard.file: shard.size_bytes for shard in copied[0]})
    return StageResult(counts=counts, facts=facts, notes=_notes(index, planned, config))


def _copy_all(
    index: SampleIndex,
    sets: Sequence[Layout],
    folders: dict[str, Path],
    out: Path,
    config: WriteConfig,
    executor: Executor,
    progress: Progress,
) -> list[list[CopiedShard]]:
    """Copies all output shards and returns them set by set in order."""
    journal = Journal(out)
    paths = [ref.path for ref in index.shards]
    finished = {
        (layout.name, number): shard
        for layout in sets
        for number in range(len(layout))
        if (shard := journal.find(folders[layout.name] / layout.file(number))) is not None
    }
    total = sum(len(layout.rows_R) for layout in sets)
    done = sum(shard.samples for shard in finished.values())
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with progress.track("write", total, "samples", done) as advance:
        for layout in sets:
            to = config.to if layout.name == "clean" else None
            make = partial(ShardCopier, paths, to, config.sha256)
            job = Job("write", "samples", make, samples_of, detach=cut)
            numbers = range(len(layout))
            todo = [Output(n, layout) for n in numbers if (layout.name, n) not in finished]
            folder = folders[layout.name]
            for piece, shard in executor.map(job, todo, folder, advance, threads=threads):
                journal.add(shard)
                finished[layout.name, piece.number] = shard
    return [[finished[layout.name, number] for number in range(len(layout))] for layout in sets]


def _upload(config: WriteConfig, run: Path) -> Upload | None:
    if config.to is None:
        return None
    # fsspec is loaded by those who need it.
    from shardsieve.shards.upload import Upload

    return Upload(config.to, run)


def _write_manifest(index: SampleIndex, scores: Path, sets: Sequence[Layout], out: Path) -> None:
    files: list[str] = []
    file_N = np.full(len(index), -1, np.int32)
    file_offset_N = np.zeros(len(index), np.int64)
    for layout in sets:
        for number in range(len(layout)):
            rows = layout.rows(number)
            file_N[rows] = len(files)
            file_offset_N[rows] = layout.starts(number)
            files.append(layout.file(number))
    write_written(out / MANIFEST, index, scores, files, file_N, file_offset_N)


def _notes(index: SampleIndex, planned: Plan, config: WriteConfig) -> list[str]:
    notes = []
    clean = planned.sets[0]
    if not len(clean):
        notes.append("no sample is clean: no shard was written")
    if planned.over_quota_N.any():
        over_K = np.bincount(index.label_N[planned.over_quota_N], minlength=index.n_classes)
        listed = [
            f"{index.classes[label]} {over_K[label]:,}"
            for label in np.argsort(-over_K, kind="stable")[:_LISTED_CLASSES]
            if over_K[label]
        ]
        more = int(np.count_nonzero(over_K)) - len(listed)
        quota = [f"write.per_class_cap = {config.per_class_cap}"] if config.per_class_cap else []
        quota += ["write.balance"] if config.balance else []
        notes.append(
            f"{int(over_K.sum()):,} clean samples are over the quota ({', '.join(quota)}) and were "
            f"left out: {', '.join(listed)}" + (f" and {more} more classes" if more else "")
        )
    for layout in planned.sets:
        if joined := _same_key_as_before(index, layout):
            notes.append(
                f"{joined:,} samples of the {layout.name} set stand right behind one of the same "
                "key; WebDataset takes such a pair for one sample"
            )
    return notes


def _same_key_as_before(index: SampleIndex, layout: Layout) -> int:
    """Counts neighbours with equal keys, an output shard at a time."""
    count = 0
    for number in range(len(layout)):
        keys = index.keys_N.take(layout.rows(number))
        if len(keys) > 1:
            count += pc.sum(pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))).as_py()
    return count


def _refuse_changed(index: SampleIndex) -> None:
    for ref in index.shards:
        now = stat_shard(ref.path)
        if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            raise ShardError(f"{ref.path} changed since it was indexed; run `clean` again")


def _claim(folder: Path, run: Path) -> None:
    """Marks a folder as this run's before its first shard: a kill must not make it foreign."""
    marker = folder / _MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = marker.read_text(encoding="utf-8").strip() if marker.is_file() else None
        if owner != str(run) and any(folder.glob("removed-*.tar")):
            raise DataError(
                f"{folder} holds removed shards of {owner or 'something else'}; "
                "choose an empty folder for the removed samples"
            )
        write_text(marker, f"{run}\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to: {error.strerror}") from error


def _remove_surplus(folder: Path, layout: Layout) -> None:
    """Deletes shards of an earlier, larger set; the others have been replaced one by one."""
    for path in folder.glob(f"{layout.name}-*.tar"):
        number = path.stem.removeprefix(f"{layout.name}-")
        if number.isdigit() and int(number) >= len(layout):
            path.unlink()
    for path in folder.glob(f"{layout.name}-*.tar.part"):
        path.unlink()
