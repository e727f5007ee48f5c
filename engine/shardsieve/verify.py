"""verify: every count and every hash of a run, read again from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardsieve.data.features import check_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.manifest import Counts, Manifest
from shardsieve.data.reason import KEPT_REASONS, Reason
from shardsieve.data.record import StageRecord
from shardsieve.data.scores import reason_numbers
from shardsieve.data.table import column
from shardsieve.data.written import MANIFEST
from shardsieve.errors import DataError, ShardError, StaleArtefact
from shardsieve.identity import STAGES
from shardsieve.progress import Progress, Silent
from shardsieve.rundir import RunDir, hash_file
from shardsieve.shards.headers import check_headers
from shardsieve.shards.output import WrittenRows, check_output
from shardsieve.shards.samples import stat_shard

_LISTED = 20


@dataclass(slots=True)
class Findings:
    """What was looked at, and what is off.

    Attributes:
        checked: How much of what was looked at.
        problems: Sentences; none means that everything is as it was written.
    """

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, problems: Iterator[str]) -> None:
        """Adds what a check finds; after a few, only how many more."""
        self.problems += islice(problems, _LISTED)
        more = sum(1 for _ in problems)
        if more:
            self.problems.append(f"... and {more:,} more of this kind")

    def count(self, what: str, amount: int) -> None:
        """Adds to what was looked at."""
        self.checked[what] = self.checked.get(what, 0) + amount


def verify(run: Path, *, progress: Progress | None = None) -> Findings:
    """Compares a run with its records, its tables with each other and its shards with their source.

    Args:
        run: The run directory; nothing in it is changed.
        progress: Where to report.

    Returns:
        What is off. Whatever cannot be read is a finding, not an error.

    Raises:
        StaleArtefact: There is no run.
    """
    directory = RunDir(run)
    findings = Findings()
    records: dict[str, StageRecord] = {}
    for stage in STAGES:
        try:
            record = directory.record(stage.name)
        except DataError as error:
            findings.problems.append(str(error))
            continue
        if record is not None:
            records[stage.name] = record
    if not records:
        raise StaleArtefact(f"{run}: no finished stage here; make a run with `clean`")
    checks: tuple[tuple[str, _Check], ...] = (
        ("index", _records_and_files),
        ("index", _index_and_shards),
        ("embed", _features),
        ("probe", _losses),
        ("select", _scores),
        ("write", _outputs),
    )
    progress = progress or Silent()
    with progress.track("verify", len(checks), "checks") as advance:
        for stage_name, check in checks:
            if stage_name in records:
                findings.take(_told(check(directory, records, findings)))
            advance(1)
    return findings


_Check = Callable[[RunDir, dict[str, StageRecord], Findings], Iterator[str]]


def _told(problems: Iterator[str]) -> Iterator[str]:
    """Turns an error that ends a check into its last finding."""
    try:
        yield from problems
    except (DataError, OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        yield str(error)


def _records_and_files(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    for name, record in records.items():
        folder = directory.folder(name)
        for need, key in record.identity.get("inputs", {}).items():
            found = records.get(need)
            if key is not None and (found is None or found.key != key):
                yield f"{name} was made from another {need} than is here; run `shardsieve {name}`"
        for file, sha256 in record.files.items():
            findings.count("files", 1)
            if not (folder / file).is_file():
                yield f"{folder / file}: gone"
            elif hash_file(folder / file) != sha256:
                yield f"{folder / file}: not what was written, its sha256 differs"


def _index_and_shards(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    index = SampleIndex.open(directory.folder("index"))
    findings.count("samples", len(index))
    if len(index) != sum(ref.n_samples for ref in index.shards):
        yield f"index: {len(index):,} rows, but its shards have another number of samples"
    if len(index) != records["index"].counts["samples"]:
        yield f"index: {len(index):,} rows, its record says {records['index'].counts['samples']:,}"
    keys, reason_N = index.keys_N, index.reason_N
    offset_N, size_N = index.numbers("offset"), index.numbers("size")
    for number, ref in enumerate(index.shards):
        findings.count("input shards", 1)
        try:
            now = stat_shard(ref.path)
        except ShardError as error:
            yield str(error)
            continue
        if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            yield f"{ref.path}: changed since it was indexed"
            continue
        rows = index.rows_of(number)
        # A gap in a damaged tar has no header.
        with_header = np.flatnonzero(reason_N[rows] != Reason.DAMAGED_TAR) + rows.start
        yield from check_headers(
            ref.path, keys.take(with_header), offset_N[with_header], size_N[with_header]
        )


def _features(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    index = SampleIndex.open(directory.folder("index"))
    for shard, ref in enumerate(index.shards):
        findings.count("feature files", 1)
        try:
            n_rows = check_shard(directory.folder("embed"), shard)
        except DataError as error:
            yield str(error)
            continue
        if n_rows != ref.n_samples:
            yield f"embed: shard {shard} has {n_rows:,} rows, the index {ref.n_samples:,}"


def _losses(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    losses = LossTable.open(directory.folder("probe") / "losses.arrow")
    index = SampleIndex.open(directory.folder("index"))
    if len(losses) != len(index):
        yield f"probe: {len(losses):,} rows of losses, the index has {len(index):,}"
    scored = int(np.count_nonzero(np.isfinite(losses.loss_N)))
    if scored != records["probe"].counts["scored"]:
        yield f"probe: {scored:,} losses, its record says {records['probe'].counts['scored']:,}"


def _scores(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    index = SampleIndex.open(directory.folder("index"))
    counts = np.zeros(256, np.int64)
    start = 0
    with pq.ParquetFile(directory.folder("select") / "scores.parquet") as file:
        for batch in file.iter_batches(131_072, columns=["key", "offset", "kept", "reason"]):
            samples = index.table.slice(start, batch.num_rows)
            if not pa.chunked_array([batch.column("key")]).equals(samples.column("key")) or not (
                np.array_equal(batch.column("offset").to_numpy(), column(samples, "offset"))
            ):
                yield f"scores.parquet: rows from {start:,} on are not those of the index"
            reason_R = reason_numbers(batch.column("reason"))
            if not np.array_equal(
                batch.column("kept").to_numpy(zero_copy_only=False), np.isin(reason_R, KEPT_REASONS)
            ):
                yield f"scores.parquet: kept and reason contradict each other after row {start:,}"
            counts += np.bincount(reason_R, minlength=256)
            start += batch.num_rows
    if start != len(index):
        yield f"scores.parquet: {start:,} rows, the index has {len(index):,}"
    found = {Reason(value).word: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    if found != records["select"].facts["by_reason"]:
        yield f"select: counted {found}, its record says {records['select'].facts['by_reason']}"
    file_of_counts = directory.path / "manifest.json"
    told = Manifest.model_validate_json(file_of_counts.read_bytes()).counts
    if told is not None and not told.reconciles:
        yield f"manifest.json: in = kept + removed + unreadable does not hold: {told}"
    if told is not None and not _write_is_current(records) and told != _counted(counts):
        yield f"manifest.json: says {told}, counted {_counted(counts)}"


def _write_is_current(records: dict[str, StageRecord]) -> bool:
    written, selected = records.get("write"), records.get("select")
    if written is None or selected is None:
        return False
    return bool(written.identity["inputs"]["select"] == selected.key)


def _counted(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Counts:
    groups: dict[str, dict[str, int]] = {"kept": {}, "removed": {}, "unreadable": {}}
    for value in np.flatnonzero(counts).tolist():
        reason = Reason(value)
        groups[reason.group][reason.word] = int(counts[value])
    return Counts(
        samples_in=int(counts.sum()),
        kept=sum(groups["kept"].values()),
        removed=groups["removed"],
        unreadable=groups["unreadable"],
    )


def _outputs(
    directory: RunDir, records: dict[str, StageRecord], findings: Findings
) -> Iterator[str]:
    index = SampleIndex.open(directory.folder("index"))
    record, folder = records["write"], directory.folder("write")
    rows = WrittenRows.read(folder / MANIFEST)
    if len(rows.file_N) != len(index):
        yield f"{MANIFEST}: {len(rows.file_N):,} rows, the index has {len(index):,}"
        return
    settings = record.identity["settings"]
    folders = {"clean": folder, "removed": Path(settings["removed"] or folder)}
    listed = {}
    for name, shards in record.facts.items():
        for shard in shards if name in folders else []:
            listed[shard["file"]] = (folders[name] / shard["file"], shard)
    yield from check_output(listed, rows, index)
    findings.count("output shards", len(listed))
    findings.count("output bytes", sum(shard["size_bytes"] for _, shard in listed.values()))
    told = Manifest.model_validate_json((directory.path / "manifest.json").read_bytes()).counts
    if told is not None and _write_is_current(records) and told != _counted(rows.reasons):
        yield f"manifest.json: says {told}, {MANIFEST} has {_counted(rows.reasons)}"
    in_clean = sum(rows.file_N >= 0) - sum(
        shard["samples"] for shard in record.facts.get("removed", [])
    )
    kept = sum(rows.reasons[reason] for reason in KEPT_REASONS)
    if in_clean != kept:
        yield f"{MANIFEST}: {kept:,} kept, {in_clean:,} in clean shards"
