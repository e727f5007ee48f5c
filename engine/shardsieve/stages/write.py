"""write: scores -> filtered shard sets, every kept byte as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardsieve.data.index import SampleIndex
from shardsieve.data.record import StageResult
from shardsieve.data.table import write_text
from shardsieve.errors import DataError, ShardError
from shardsieve.progress import Advance, Progress
from shardsieve.shards.copy import CopiedShard, coalesce, copy_ranges
from shardsieve.shards.samples import stat_shard

# In a folder of removed shards: the run they came from.
_MARKER = "removed-from.txt"


def write(
    index: SampleIndex,
    kept_N: npt.NDArray[np.bool_],
    removed_N: npt.NDArray[np.bool_],
    *,
    out: Path,
    removed_out: Path | None,
    run: Path,
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
        run: The run directory, by which `removed_out` is known as ours when it is written again.
        progress: Where to report.

    Returns:
        Counts; a list of all shards with source, samples, size and sha256.

    Raises:
        ShardError: An input shard is gone or changed since it was indexed.
        DataError: `removed_out` cannot be used, or holds removed shards of something else.
    """
    if removed_out is not None:
        _claim(removed_out, run)
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
            _remove_surplus(folder, name, len(copied))
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


def _remove_surplus(folder: Path, name: str, n_shards: int) -> None:
    """Deletes shards of an earlier, larger set; the others have been replaced one by one."""
    for path in folder.glob(f"{name}-*.tar"):
        number = path.stem.removeprefix(f"{name}-")
        if number.isdigit() and int(number) >= n_shards:
            path.unlink()
