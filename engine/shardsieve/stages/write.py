"""write: scores -> filtered shard sets, every kept byte as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardsieve.data.index import SampleIndex
from shardsieve.data.record import StageResult
from shardsieve.errors import DataError, ShardError
from shardsieve.progress import Advance, Progress
from shardsieve.shards.copy import CopiedShard, coalesce, copy_ranges
from shardsieve.shards.samples import stat_shard


def write(
    index: SampleIndex,
    kept_N: npt.NDArray[np.bool_],
    removed_N: npt.NDArray[np.bool_],
    *,
    out: Path,
    removed_out: Path | None,
    removed_before: set[str],
    progress: Progress,
) -> StageResult:
    """Copies the kept samples, and on request the removed ones, into new shards.

    One shard comes out for every input shard that has a sample to give, numbered without gaps, so
    that `clean-{000000..NNNNNN}.tar` names them all. Order inside and between shards is kept.

    Args:
        index: The samples.
        kept_N: (N,) samples for `clean-*.tar`.
        removed_N: (N,) samples for `removed-*.tar`.
        out: Folder of the clean shards.
        removed_out: Folder of the removed ones, None for none.
        removed_before: Files there that an earlier run of this stage wrote: they are replaced.
        progress: Where to report.

    Returns:
        Counts; a list of all shards with source, samples, size and sha256.

    Raises:
        ShardError: An input shard is gone or changed since it was indexed.
        DataError: `removed_out` holds removed shards of something else.
    """
    if removed_out is not None:
        _clear(removed_out, removed_before)
    _refuse_changed(index)
    sets = [("clean", out, kept_N)]
    if removed_out is not None:
        sets.append(("removed", removed_out, removed_N))
    counts: dict[str, int] = {"samples": len(index)}
    facts: dict[str, list[dict[str, Any]]] = {}
    with progress.track("write", sum(int(mask.sum()) for *_, mask in sets), "samples") as advance:
        for name, folder, mask in sets:
            copied = _copy_set(index, mask, folder, name, advance)
            counts[f"{name}_samples"] = sum(shard.samples for shard in copied)
            counts[f"{name}_shards"] = len(copied)
            counts[f"{name}_bytes"] = sum(shard.size_bytes for shard in copied)
            facts[name] = [dataclasses.asdict(shard) for shard in copied]
    notes = [] if counts["clean_samples"] else ["no sample is clean: no shard was written"]
    return StageResult(counts=counts, facts=facts, notes=notes)


def _copy_set(
    index: SampleIndex,
    mask_N: npt.NDArray[np.bool_],
    folder: Path,
    name: str,
    advance: Advance,
) -> list[CopiedShard]:
    offset_N, size_N = index.numbers("offset"), index.numbers("size")
    copied: list[CopiedShard] = []
    for number, ref in enumerate(index.shards):
        span = index.rows_of(number)
        rows = np.flatnonzero(mask_N[span]) + span.start
        if not len(rows):
            continue
        file = f"{name}-{len(copied):06d}.tar"
        ranges = coalesce(offset_N[rows], size_N[rows])
        size_bytes, sha256 = copy_ranges(ref.path, ranges, folder / file)
        copied.append(CopiedShard(file, number, len(rows), size_bytes, sha256))
        advance(len(rows))
    return copied


def _refuse_changed(index: SampleIndex) -> None:
    for ref in index.shards:
        now = stat_shard(ref.path)
        if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            raise ShardError(f"{ref.path} changed since it was indexed; run `clean` again")


def _clear(folder: Path, ours: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in folder.glob("removed-*.tar") if path.name not in ours)
    if foreign:
        raise DataError(
            f"{folder} already holds {foreign[0]}, which this run did not write; "
            "choose an empty folder for the removed samples"
        )
    for name in ours:
        (folder / name).unlink(missing_ok=True)
