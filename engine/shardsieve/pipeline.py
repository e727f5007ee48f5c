"""The line: which stages there are, what each depends on, and which must run again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import Config, Precision, load_config
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.manifest import build_manifest
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageRecord, StageResult, changed_settings, content_key
from shardsieve.data.table import write_text
from shardsieve.errors import ConfigError, DataError, ShardsieveError, StaleArtefact
from shardsieve.identity import BY_NAME, STAGES, Identities, Stage, absolute_paths
from shardsieve.models.weights import refuse_unknown
from shardsieve.progress import Progress, Silent
from shardsieve.run import Run
from shardsieve.rundir import RunDir
from shardsieve.shards.locate import locate_shards
from shardsieve.stages.index import index
from shardsieve_kernels import resolve_backend

if TYPE_CHECKING:
    import torch

_LISTED_UNREADABLE = 10_000


def clean(
    shards: str | Sequence[str],
    out: str | Path,
    config: Config | None = None,
    *,
    tune: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Runs the whole line; stages whose inputs and settings have not changed are not run again.

    Args:
        shards: Paths, brace patterns, globs, folders or text lists.
        out: The run directory.
        config: Settings; the defaults follow the paper.
        tune: Also fine-tune the network on the clean samples.
        progress: Where to report; default: nowhere.

    Returns:
        The finished run.

    Raises:
        ShardsieveError: Bad input or settings; see `shardsieve.errors`.
    """
    # The shards do not wait for fine-tuning, nor are they lost with it.
    names = ["index", "embed", "probe", "select", "write", *(["tune"] if tune else []), "report"]
    patterns = [shards] if isinstance(shards, str) else shards
    return run_stages(names, Path(out), config or Config(), patterns, progress=progress)


def run_stages(
    names: Sequence[str],
    out: Path,
    config: Config,
    patterns: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Run:
    """Runs some stages in the order given.

    Args:
        names: Stages; what they need must be among them or finished and up to date.
        out: The run directory.
        config: Settings.
        patterns: The shards; None takes those of the run's index.
        progress: Where to report.

    Raises:
        StaleArtefact: A stage is needed that is missing or was made with other settings.
        ShardsieveError: As `clean`.
    """
    progress = progress or Silent()
    config = absolute_paths(config, tuned="tune" in names)
    shards = locate_shards(patterns) if patterns is not None else _indexed_shards(out)
    directory = RunDir(out)
    line = _Line(directory, config, shards, progress)
    # Settings that cannot work are refused before a folder is made.
    line.refuse_what_cannot_work(names)
    with directory.lock():
        line.take_up(names)
        write_text(out / "config.toml", _to_toml(config))
        for name in names:
            line.bring_up_to_date(BY_NAME[name])
            line.write_manifest()
    return Run(out)


class _Line:
    """One call: settings, shards, and the stages over one run directory."""

    def __init__(
        self,
        directory: RunDir,
        config: Config,
        shards: list[Path],
        progress: Progress,
    ) -> None:
        self._directory = directory
        self._config = config
        self._shards = shards
        self._backend = resolve_backend(config.backend)
        self._progress = progress
        self._run = Run(directory.path)
        self._identities = Identities(config, shards, self._key)
        self._perform: Mapping[str, Callable[[Path], StageResult]] = {
            "index": self._index,
            "embed": self._embed,
            "probe": self._probe,
            "select": self._select,
            "tune": self._tune,
            "write": self._write,
            "report": self._report,
        }

    @cached_property
    def _device(self) -> torch.device:
        # torch takes seconds to load, and a stage that is up to date does not need it.
        from shardsieve.models.precision import resolve_device

        return resolve_device(self._config.device)

    @property
    def _workers(self) -> int:
        if self._config.workers is not None:
            return self._config.workers
        # Not every system can say which cores this process may use.
        allowed = getattr(os, "sched_getaffinity", None)
        return min(8, len(allowed(0)) if allowed else os.cpu_count() or 1)

    def refuse_what_cannot_work(self, names: Sequence[str]) -> None:
        """Raises what a stage would raise later, perhaps after hours."""
        config = self._config
        self._directory.refuse_foreign_folders(list(BY_NAME), self._shards)
        removed = config.write.removed
        if removed is not None and (self._directory.owns(removed) or removed.is_file()):
            raise ConfigError(
                f"write.removed = {removed}: not a folder of its own; "
                "choose one outside the folders of the stages"
            )
        if config.device not in ("auto", "cpu"):
            self._device  # noqa: B018
        if {"embed", "tune"} & set(names):
            for precision in (config.embed.precision, config.tune.precision):
                if precision == "fp16":
                    self._resolve_precision(precision)
            embedded = self._directory.record("embed")
            name = config.embed.backbone
            if embedded is None or embedded.identity["settings"]["backbone"] != name:
                refuse_unknown(name)
            self._identities.weights  # noqa: B018

    def take_up(self, names: Sequence[str]) -> None:
        """Finishes what was cut off, and makes sure that what the stages need is there."""
        for name in BY_NAME:
            self._directory.recover(name)
        for name in names:
            self._require_needs(BY_NAME[name], asked=names)

    def bring_up_to_date(self, stage: Stage) -> None:
        identity = self._identity(stage)
        before = self._directory.record(stage.name)
        if before is not None and before.key == content_key(identity) and self._is_whole(before):
            self._progress.note(f"{stage.name}: up to date")
            return
        if before is not None:
            changes = ", ".join(changed_settings(before.identity, identity)) or "its files"
            self._progress.note(f"{stage.name}: runs again, changed: {changes}")
        start = time.monotonic()
        part = self._directory.begin(stage.name, identity | self._not_to_be_mixed(stage))
        result = self._perform[stage.name](part)
        record = StageRecord(
            stage=stage.name,
            key=content_key(identity),
            identity=identity,
            seconds=round(time.monotonic() - start, 3),
            device=str(self._device) if stage.name in ("embed", "probe", "tune") else "cpu",
            backend=self._backend,
            **result.model_dump(),
        )
        self._directory.commit(record)
        for note in result.notes:
            # A thousand classes may be named; the manifest and the report have them all.
            self._progress.note(f"{stage.name}: {shorten(note, 240, placeholder=' ...')}")

    def write_manifest(self) -> None:
        records = self._current_records()
        unreadable: list[dict[str, Any]] = []
        if "select" in records:
            unreadable = _list_unreadable(self._run.scores, self._run.index)
        manifest = build_manifest(
            self._run.index, self._config.model_dump(mode="json"), records, unreadable
        )
        if manifest.counts is not None and not manifest.counts.reconciles:
            raise ShardsieveError(f"the counts do not add up, which is a bug: {manifest.counts}")
        write_text(self._directory.path / "manifest.json", manifest.model_dump_json(indent=2))

    def _require_needs(self, stage: Stage, asked: Sequence[str]) -> None:
        for need in stage.needs:
            if need in asked:
                continue
            self._require_needs(BY_NAME[need], asked)
            record = self._directory.record(need)
            if record is None:
                raise StaleArtefact(
                    f"{stage.name} needs {need}, which has not been run here; "
                    f"run `shardsieve {need}` first, or `shardsieve clean`"
                )
            identity = self._identity(BY_NAME[need])
            if record.key != content_key(identity):
                changes = ", ".join(changed_settings(record.identity, identity))
                raise StaleArtefact(
                    f"{stage.name} needs {need}, which was made from something else ({changes}); "
                    f"run `shardsieve {need}` first, or `shardsieve clean`"
                )

    def _current_records(self) -> dict[str, StageRecord]:
        records: dict[str, StageRecord] = {}
        for stage in STAGES:
            record = self._directory.record(stage.name)
            current = record is not None and all(need in records for need in stage.needs)
            if record is not None and current and record.key == content_key(self._identity(stage)):
                records[stage.name] = record
        return records

    def _is_whole(self, record: StageRecord) -> bool:
        """Whether the shards that were written are still there, with their sizes."""
        if record.stage != "write":
            return True
        folders = {"clean": self._directory.folder("write"), "removed": self._config.write.removed}
        return all(
            (file := Path(folders[name] or "") / shard["file"]).is_file()
            and file.stat().st_size == shard["size_bytes"]
            for name, shards in record.facts.items()
            for shard in shards
        )

    def _identity(self, stage: Stage) -> dict[str, Any]:
        return self._identities.of(stage)

    def _not_to_be_mixed(self, stage: Stage) -> dict[str, str]:
        """What an interrupted embed must be gone on with: one store, one arithmetic."""
        if stage.name != "embed":
            return {}
        return {"made_with": f"{self._device.type} {self._resolve_precision('auto')}"}

    def _resolve_precision(self, precision: Precision) -> Precision:
        from shardsieve.models.precision import resolve_precision

        return resolve_precision(precision, self._device)

    def _key(self, stage: str) -> str | None:
        record = self._directory.record(stage)
        return record.key if record is not None else None

    # How each stage is called; what it needs is loaded when it is due.

    def _index(self, out: Path) -> StageResult:
        return index(self._shards, self._config.index, out=out, progress=self._progress)

    def _embed(self, out: Path) -> StageResult:
        from shardsieve.stages.embed import embed

        return embed(
            self._run.index,
            self._config.embed,
            out=out,
            device=self._device,
            workers=self._workers,
            max_bad_fraction=self._config.index.max_bad_fraction,
            progress=self._progress,
        )

    def _probe(self, out: Path) -> StageResult:
        from shardsieve.stages.probe import probe

        return probe(
            self._run.index,
            self._run.features,
            self._config.probe,
            out=out,
            seed=self._config.seed,
            device=self._device,
            backend=self._backend,
            progress=self._progress,
        )

    def _select(self, out: Path) -> StageResult:
        from shardsieve.stages.select import select

        return select(
            self._run.index,
            self._run.features,
            LossTable.open(self._directory.folder("probe") / "losses.arrow"),
            self._config.select,
            q=self._config.probe.q,
            out=out,
            backend=self._backend,
        )

    def _tune(self, out: Path) -> StageResult:
        from shardsieve.stages.tune import tune

        config = self._config
        samples = self._run.index
        kept_N = self._kept()
        validation = None
        if config.tune.validation:
            folder = out / "validation"
            folder.mkdir(exist_ok=True)
            labels = config.tune.validation_labels or config.index.labels
            try:
                index(
                    [Path(path) for path in config.tune.validation],
                    config.index.model_copy(update={"labels": labels}),
                    out=folder,
                    progress=self._progress,
                    classes=samples.classes,
                )
            except DataError as error:
                raise DataError(
                    f"validation shards: {error}. Their labels are set by tune.validation_labels"
                ) from error
            validation = SampleIndex.open(folder)
        return tune(
            samples,
            samples.readable_N & (self._run.features.reason_N == Reason.KEPT),
            kept_N,
            self._directory.folder("probe") / "head.safetensors",
            config.tune,
            embed_config=config.embed,
            select_config=config.select,
            q=config.probe.q,
            validation=validation,
            out=out,
            seed=config.seed,
            device=self._device,
            workers=self._workers,
            backend=self._backend,
            progress=self._progress,
        )

    def _write(self, out: Path) -> StageResult:
        from shardsieve.stages.write import write

        reasons = self._run.scores.column("reason").cast(pa.string())
        return write(
            self._run.index,
            self._kept(),
            pc.equal(reasons, Reason.HIGH_LOSS.word).to_numpy(),
            out=out,
            removed_out=self._config.write.removed,
            run=self._directory.path.resolve(),
            progress=self._progress,
        )

    def _report(self, out: Path) -> StageResult:
        from shardsieve.stages.report import report

        return report(
            self._run.index,
            self._run.scores,
            self._run.classes,
            self._current_records(),
            self._config,
            clean=self._directory.folder("write"),
            out=out,
        )

    def _kept(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        kept: np.ndarray[Any, np.dtype[np.bool_]] = self._run.scores.column("kept").to_numpy()
        return kept


def _indexed_shards(out: Path) -> list[Path]:
    folder = RunDir(out).folder("index")
    if not (folder / "shards.json").is_file():
        raise StaleArtefact(
            f"{out}: no index here; run `shardsieve index SHARDS... -o {out}` first"
        )
    return [ref.path for ref in SampleIndex.open(folder).shards]


def _list_unreadable(scores: pa.Table, samples: SampleIndex) -> list[dict[str, Any]]:
    words = [reason.word for reason in Reason if reason.group == "unreadable"]
    bad = pc.is_in(scores.column("reason").cast(pa.string()), value_set=pa.array(words))
    rows = scores.filter(bad).select(["key", "shard", "offset", "reason", "detail"])
    listed: list[dict[str, Any]] = rows.slice(0, _LISTED_UNREADABLE).to_pylist()
    for row in listed:
        row["shard"] = str(samples.shards[row["shard"]].path)
    return listed


def _to_toml(config: Config) -> str:
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def saved_config(out: Path, overrides: Sequence[str], file: Path | None) -> Config:
    """Returns the settings of a run, or of a file instead, with overrides.

    Raises:
        ConfigError: A setting is not allowed.
        StaleArtefact: There is no run in `out`.
    """
    saved = out / "config.toml"
    if file is None and not saved.is_file():
        raise StaleArtefact(f"{out}: no run here; start with `shardsieve index` or `clean`")
    return load_config(file or saved, overrides)
