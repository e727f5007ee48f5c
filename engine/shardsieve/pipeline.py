"""The line: which stages there are, what each depends on, and which must run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from shardsieve.config import Config, load_config
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.manifest import Manifest, build_manifest
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageRecord, StageResult, changed_settings, content_key
from shardsieve.data.table import write_text
from shardsieve.errors import ShardsieveError, StaleArtefact
from shardsieve.models.backbone import weights_identity
from shardsieve.models.precision import default_workers, resolve_device
from shardsieve.progress import Progress, Silent
from shardsieve.rundir import RunDir
from shardsieve.shards.labels import TABLE_SUFFIXES
from shardsieve.shards.locate import locate_shards
from shardsieve.shards.samples import stat_shard
from shardsieve.stages.embed import embed
from shardsieve.stages.index import index
from shardsieve.stages.probe import probe
from shardsieve.stages.select import select
from shardsieve.stages.tune import tune
from shardsieve.stages.write import write
from shardsieve_kernels import Backend, resolve_backend

_LISTED_UNREADABLE = 10_000


@dataclass(frozen=True, slots=True)
class Stage:
    """One link of the line.

    Attributes:
        name: The verb.
        version: Raised when the same inputs and settings give another result than before.
        needs: Stages whose results it reads.
    """

    name: str
    version: int
    needs: tuple[str, ...]


STAGES = (
    Stage("index", 1, ()),
    Stage("embed", 1, ("index",)),
    Stage("probe", 1, ("index", "embed")),
    Stage("select", 1, ("index", "embed", "probe")),
    Stage("tune", 1, ("index", "embed", "probe", "select")),
    Stage("write", 1, ("index", "select")),
    Stage("report", 1, ("index", "embed", "probe", "select", "write")),
)
_BY_NAME = {stage.name: stage for stage in STAGES}


class Run:
    """A run directory and what lies in it; everything is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = RunDir(path)

    @property
    def manifest(self) -> Manifest:
        """What came in, what came out, and why."""
        return Manifest.model_validate_json((self.path / "manifest.json").read_text("utf-8"))

    @property
    def index(self) -> SampleIndex:
        """The samples in the row order of all tables."""
        return SampleIndex.open(self._directory.folder("index"))

    @property
    def scores(self) -> pa.Table:
        """One row per sample: label, loss, margin, pred, p_clean, kept, reason."""
        return pq.read_table(self._directory.folder("select") / "scores.parquet")

    @property
    def classes(self) -> pa.Table:
        """One row per class: samples, kept, and the fitted mixture."""
        return pq.read_table(self._directory.folder("select") / "classes.parquet")

    @property
    def features(self) -> FeatureStore:
        """The cached features, mapped."""
        n_shards = len(self.index.shards)
        return FeatureStore.open(self._directory.folder("embed"), n_shards)

    @property
    def clean_shards(self) -> list[Path]:
        """The filtered shards."""
        return sorted(self._directory.folder("write").glob("clean-*.tar"))

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self._directory.folder("report") / "report.html"

    @property
    def model(self) -> Path:
        """The fine-tuned weights, if the run was tuned."""
        return self._directory.folder("tune") / "model.safetensors"


def open_run(path: str | Path) -> Run:
    """Opens a run directory.

    Raises:
        StaleArtefact: There is no run in it.
    """
    run = Run(Path(path))
    if not (run.path / "manifest.json").is_file():
        raise StaleArtefact(f"{path}: no run here (no manifest.json); make one with `clean`")
    return run


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
    names = [stage.name for stage in STAGES if tune or stage.name != "tune"]
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
    config = _absolute(config)
    # Settings that cannot work are refused before a folder is made.
    device, backend = resolve_device(config.device), resolve_backend(config.backend)
    shards = locate_shards(patterns) if patterns is not None else _indexed_shards(out)
    if {"embed", "tune"} & set(names):
        weights_identity(config.embed)
    directory = RunDir(out)
    with directory.lock():
        line = _Line(directory, config, shards, device, backend, progress)
        write_text(out / "config.toml", _to_toml(config))
        for name in names:
            line.bring_up_to_date(_BY_NAME[name], asked=names)
            line.write_manifest()
    return Run(out)


class _Line:
    """One call: settings, shards, and the stages over one run directory."""

    def __init__(
        self,
        directory: RunDir,
        config: Config,
        shards: list[Path],
        device: torch.device,
        backend: Backend,
        progress: Progress,
    ) -> None:
        self._directory = directory
        self._config = config
        self._shards = shards
        self._device = device
        self._backend = backend
        self._progress = progress
        self._workers = default_workers(config.workers)
        self._run = Run(directory.path)
        self._perform: Mapping[str, Callable[[Path], StageResult]] = {
            "index": self._index,
            "embed": self._embed,
            "probe": self._probe,
            "select": self._select,
            "tune": self._tune,
            "write": self._write,
            "report": self._report,
        }

    def bring_up_to_date(self, stage: Stage, asked: Sequence[str]) -> None:
        for need in stage.needs:
            if need not in asked:
                self._require(need, stage.name)
        self._directory.recover(stage.name)
        identity = self._identity(stage)
        before = self._directory.record(stage.name)
        if before is not None and before.key == content_key(identity) and self._is_whole(before):
            self._progress.note(f"{stage.name}: up to date")
            return
        if before is not None:
            changes = ", ".join(changed_settings(before.identity, identity)) or "its files"
            self._progress.note(f"{stage.name}: runs again, changed: {changes}")
        start = time.monotonic()
        part = self._directory.begin(stage.name, identity)
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
            self._progress.note(f"{stage.name}: {note}")

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

    def _require(self, need: str, by: str) -> None:
        record = self._directory.record(need)
        if record is None:
            raise StaleArtefact(
                f"{by} needs {need}, which has not been run here; "
                f"run `shardsieve {need}` first, or `shardsieve clean`"
            )
        identity = self._identity(_BY_NAME[need])
        if record.key != content_key(identity):
            changes = ", ".join(changed_settings(record.identity, identity))
            raise StaleArtefact(
                f"{by} needs {need}, which was made from something else ({changes}); "
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

    # What each stage is identified by: only what can change its result.

    def _identity(self, stage: Stage) -> dict[str, Any]:
        config = self._config
        settings = getattr(config, stage.name).model_dump(mode="json")
        identity: dict[str, Any] = {"stage": stage.name, "version": stage.version}
        if stage.name == "index":
            settings.pop("max_bad_fraction")
            identity["shards"] = _stat_all(self._shards, with_folder=True)
            identity["files"] = _stat_label_files(config)
        elif stage.name == "embed":
            # Not the index as a whole: new labels leave the features as they are.
            identity["shards"] = _stat_all(self._shards, with_folder=False)
            identity["image"] = list(config.index.image)
            identity["weights"] = weights_identity(config.embed)
            settings.pop("checkpoint")
        else:
            identity["inputs"] = {need: self._key(need) for need in stage.needs}
        if stage.name in ("probe", "tune"):
            identity["seed"] = config.seed
        if stage.name in ("select", "tune") and config.select.loss == "gce":
            identity["q"] = config.probe.q
        if stage.name == "tune" and config.tune.validation:
            paths = [Path(path) for path in config.tune.validation]
            identity["validation"] = _stat_all(paths, with_folder=True)
        if stage.name == "report":
            # Shown if it is there and belongs to this run; not needed.
            tuned = self._key("tune")
            current = tuned == content_key(self._identity(_BY_NAME["tune"]))
            identity["inputs"]["tune"] = tuned if current else None
        identity["settings"] = settings
        return identity

    def _key(self, stage: str) -> str | None:
        record = self._directory.record(stage)
        return record.key if record is not None else None

    # How each stage is called.

    def _index(self, out: Path) -> StageResult:
        return index(self._shards, self._config.index, out=out, progress=self._progress)

    def _embed(self, out: Path) -> StageResult:
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
        config = self._config
        samples = self._run.index
        kept_N = self._kept()
        validation = None
        if config.tune.validation:
            folder = out / "validation"
            folder.mkdir(exist_ok=True)
            index(
                [Path(path) for path in config.tune.validation],
                config.index,
                out=folder,
                progress=self._progress,
                classes=samples.classes,
            )
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
        reasons = self._run.scores.column("reason").cast(pa.string())
        before = self._directory.record("write")
        return write(
            self._run.index,
            self._kept(),
            pc.equal(reasons, Reason.HIGH_LOSS.word).to_numpy(),
            out=out,
            removed_out=self._config.write.removed,
            removed_before={
                shard["file"] for shard in (before.facts.get("removed", []) if before else [])
            },
            progress=self._progress,
        )

    def _report(self, out: Path) -> StageResult:
        # Drawing libraries are slow to load and only this stage needs them.
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


def _stat_all(paths: Sequence[Path], *, with_folder: bool) -> str:
    rows = []
    for path in paths:
        ref = stat_shard(path)
        name = str(path) if with_folder else path.name
        rows.append([name, ref.size_bytes, ref.mtime_ns])
    return content_key({"shards": rows})


def _stat_label_files(config: Config) -> str | None:
    files = [config.index.classes] if config.index.classes else []
    if config.index.labels.endswith(TABLE_SUFFIXES):
        files.append(Path(config.index.labels))
    present = [file for file in files if file.is_file()]
    return _stat_all(present, with_folder=True) if present else None


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


def _absolute(config: Config) -> Config:
    """Makes paths independent of the folder the command is called from."""
    samples, source = config.index, config.embed
    labels = samples.labels
    if labels.endswith(TABLE_SUFFIXES):
        labels = str(Path(labels).expanduser().resolve())
    classes = samples.classes.expanduser().resolve() if samples.classes else None
    checkpoint = source.checkpoint
    if checkpoint and checkpoint != "hub" and not checkpoint.startswith("package:"):
        checkpoint = str(Path(checkpoint).expanduser().resolve())
    removed = config.write.removed.expanduser().resolve() if config.write.removed else None
    validation = config.tune.validation
    if validation:
        validation = tuple(str(path) for path in locate_shards(validation))
    return config.model_copy(
        update={
            "index": samples.model_copy(update={"labels": labels, "classes": classes}),
            "embed": source.model_copy(update={"checkpoint": checkpoint}),
            "tune": config.tune.model_copy(update={"validation": validation}),
            "write": config.write.model_copy(update={"removed": removed}),
        }
    )


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


def manifest_json(run: Run) -> dict[str, Any]:
    """Returns the manifest as JSON values, with where the results lie."""
    tree: dict[str, Any] = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    return {"run": str(run.path.resolve()), **tree}
