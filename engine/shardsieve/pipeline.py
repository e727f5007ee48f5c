"""The line: which stages there are, what each depends on, and which must run again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

from shardsieve.calls import Calls
from shardsieve.config import Config, load_config
from shardsieve.data.decisions import read_decisions
from shardsieve.data.disk import writing_to
from shardsieve.data.features import shard_file
from shardsieve.data.index import SampleIndex
from shardsieve.data.location import ShardPath
from shardsieve.data.manifest import build_manifest
from shardsieve.data.record import StageRecord, changed_settings, content_key
from shardsieve.data.scores import list_unreadable
from shardsieve.data.table import write_text
from shardsieve.engines.choice import Engine, EngineName, opened
from shardsieve.engines.executor import Executor
from shardsieve.engines.local import Local
from shardsieve.errors import ConfigError, ShardsieveError, StaleArtefact
from shardsieve.identity import BY_NAME, STAGES, Identities, Stage, absolute_paths
from shardsieve.models.weights import refuse_unknown
from shardsieve.progress import Progress, Silent
from shardsieve.run import Run
from shardsieve.rundir import RunDir
from shardsieve.shards.journal import Journal
from shardsieve.shards.locate import locate_shards

_WITHOUT_WORKERS = frozenset(("select", "report"))


def clean(
    shards: str | Sequence[str],
    out: str | Path,
    config: Config | None = None,
    *,
    tune: bool = False,
    progress: Progress | None = None,
    engine: Engine | EngineName = "local",
) -> Run:
    """Runs the whole line; stages whose inputs and settings have not changed are not run again.

    Args:
        shards: Paths, brace patterns, globs, folders or text lists.
        out: The run directory.
        config: Settings; `preset:turn` has the paper's.
        tune: Also fine-tune the network on the clean samples.
        progress: Where to report; default: nowhere.
        engine: `local`, `ray`, or `Engine("ray", address="auto")`. It changes no result: a run that
            was begun with one goes on with another.

    Returns:
        The finished run.

    Raises:
        ShardsieveError: Bad input or settings; see `shardsieve.errors`.
    """
    # The shards do not wait for fine-tuning, nor are they lost with it.
    names = ["index", "embed", "probe", "select", "write", *(["tune"] if tune else []), "report"]
    patterns = [shards] if isinstance(shards, str) else shards
    config = config or Config()
    return run_stages(names, Path(out), config, patterns, progress=progress, engine=engine)


def run_stages(
    names: Sequence[str],
    out: Path,
    config: Config,
    patterns: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    engine: Engine | EngineName = "local",
) -> Run:
    """Runs some stages in the order given.

    Args:
        names: Stages; what they need must be among them or finished and up to date.
        out: The run directory.
        config: Settings.
        patterns: The shards; None takes those of the run's index.
        progress: Where to report.
        engine: As for `clean`.

    Raises:
        StaleArtefact: A stage is needed that is missing, has lost a file, or was made with other
            settings.
        ShardsieveError: As `clean`.
    """
    progress = progress or Silent()
    config = absolute_paths(config, tuned="tune" in names, selected="select" in names)
    shards = locate_shards(patterns) if patterns is not None else _indexed_shards(out)
    directory = RunDir(out)
    with opened(engine, progress) as executor:
        line = _Line(directory, config, shards, progress, executor)
        # Settings that cannot work are refused before a folder is made.
        line.refuse_what_cannot_work(names)
        with directory.lock(), writing_to(out):
            line.take_up(names)
            write_text(out / "config.toml", _to_toml(config))
            for number, name in enumerate(names):
                if _WITHOUT_WORKERS.issuperset(names[number:]):
                    executor.leave()
                line.bring_up_to_date(BY_NAME[name])
                line.write_manifest()
    return Run(out)


def plan_write(out: Path, config: Config) -> dict[str, Any]:
    """Says what `write` would write: shards, samples and bytes per set and class. Writes nothing.

    Args:
        out: The run directory.
        config: Settings.

    Raises:
        StaleArtefact: There is no selection, or it was made with other settings.
    """
    from shardsieve.stages.write import describe, plan

    config = absolute_paths(config, tuned=False)
    directory = RunDir(out)
    _Line(directory, config, _indexed_shards(out), Silent()).require(["write"])
    index = SampleIndex.open(directory.folder("index"))
    scores = directory.folder("select") / "scores.parquet"
    return describe(plan(index, scores, config.write, config.seed), index)


class _Line:
    """One call: settings, shards, and the stages over one run directory."""

    def __init__(
        self,
        directory: RunDir,
        config: Config,
        shards: Sequence[ShardPath],
        progress: Progress,
        executor: Executor | None = None,
    ) -> None:
        self._directory = directory
        self._config = config
        self._shards = shards
        self._progress = progress
        self._run = Run(directory.path)
        self._executor = executor or Local()
        # Read once: a review that goes on meanwhile is for the next call.
        decisions = read_decisions(directory.path)
        self._identities = Identities(config, shards, self._key, decisions.key)
        self._calls = Calls(
            directory, config, shards, progress, self._current_records, decisions, self._executor
        )

    def refuse_what_cannot_work(self, names: Sequence[str]) -> None:
        """Raises what a stage would raise later, perhaps after hours."""
        config = self._config
        local = [path for path in self._shards if isinstance(path, Path)]
        self._directory.refuse_foreign_folders(list(BY_NAME), local)
        removed = config.write.removed
        if removed is not None and (self._directory.owns(removed) or removed.is_file()):
            raise ConfigError(
                f"write.removed = {removed}: not a folder of its own; "
                "choose one outside the folders of the stages"
            )
        if removed is not None and any(path.is_relative_to(removed) for path in local):
            raise ConfigError(
                f"write.removed = {removed}: holds the input shards, which would be replaced; "
                "choose another folder"
            )
        if config.device not in ("auto", "cpu"):
            self._calls.device  # noqa: B018
        for name, section in (("embed", config.embed), ("tune", config.tune)):
            if name in names and section.precision == "fp16":
                self._calls.precision_of(name)
        if "probe" in names:
            self._calls.refuse_probe_that_cannot_work()
        if "tune" in names:
            self._calls.refuse_tuning_that_cannot_work()
        usual = (None, "torch", "fast", "exact", "auto", "fp32")
        asked = (config.embed.engine, config.embed.decode, config.embed.precision)
        if "embed" in names and not set(asked) <= set(usual):
            self._calls.refuse_engine()
        if {"embed", "tune"} & set(names):
            embedded = self._directory.record("embed")
            name = config.embed.backbone
            if embedded is None or embedded.identity["settings"]["backbone"] != name:
                # torch and timm take seconds to load, and so does a cluster to start.
                with ThreadPoolExecutor(1) as pool:
                    loaded = pool.submit(import_module, "torch")
                    checked = pool.submit(refuse_unknown, name)
                    self._executor.start(config.device, len(self._shards))
                    loaded.result()
                    checked.result()
            self._identities.weights  # noqa: B018

    def take_up(self, names: Sequence[str]) -> None:
        """Finishes what was cut off, and makes sure that what the stages need is there."""
        for name in BY_NAME:
            self._directory.recover(name)
        self.require(names)

    def require(self, names: Sequence[str]) -> None:
        """Makes sure that what the stages need is there and up to date."""
        for name in names:
            self._require_needs(BY_NAME[name], asked=names)

    def bring_up_to_date(self, stage: Stage) -> None:
        identity = self._identity(stage)
        before = self._directory.record(stage.name)
        same = before is not None and before.key == content_key(identity)
        if before is not None and same and self._lost_file(before) is None:
            self._progress.note(f"{stage.name}: up to date")
            return
        if before is not None:
            changes = ", ".join(changed_settings(before.identity, identity)) or "its files"
            self._progress.note(f"{stage.name}: runs again, changed: {changes}")
        start = time.monotonic()
        begun_as = identity | self._not_to_be_mixed(stage)
        if before is not None and same:
            self._take_apart(before, begun_as)
        part = self._directory.begin(stage.name, begun_as)
        result = self._calls.perform(stage.name, part, begun_as)
        record = StageRecord(
            stage=stage.name,
            key=content_key(identity),
            identity=identity,
            seconds=round(time.monotonic() - start, 3),
            device=str(self._calls.device_of(stage.name)),
            backend=self._calls.backend,
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
            scores = self._directory.folder("select") / "scores.parquet"
            unreadable = list_unreadable(scores, self._run.index)
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
            # Those who have used features or clean shards may have put them elsewhere.
            if lost := self._directory.lost_table(record):
                raise StaleArtefact(
                    f"{stage.name} needs {need}, whose file {lost} is gone; "
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

    def _lost_file(self, record: StageRecord) -> Path | None:
        """Returns a file of a finished stage that is gone, or a tar that has another size."""
        for file, size in self._files_by_shard(record):
            if not file.is_file() or size not in (None, file.stat().st_size):
                return file
        return self._directory.lost_table(record)

    def _files_by_shard(self, record: StageRecord) -> Iterator[tuple[Path, int | None]]:
        """Yields the files that come one per shard, tars with their sizes."""
        folder = self._directory.folder(record.stage)
        if record.stage == "embed":
            for shard in range(len(self._run.index.shards)):
                yield shard_file(folder, shard), None
        if record.stage == "write":
            folders = {"clean": folder, "removed": self._config.write.removed}
            for name, shards in record.facts.items():
                for shard in shards if name in folders else ():
                    yield Path(folders[name] or "") / shard["file"], shard["size_bytes"]

    def _take_apart(self, record: StageRecord, begun_as: dict[str, Any]) -> None:
        """Keeps what is left of a result that is not whole, so that only the rest is made again."""
        if record.stage not in ("embed", "write"):
            return
        if record.stage == "embed":
            made_with = f"{record.device.partition(':')[0]} {record.facts['precision']}"
            if begun_as["made_with"] != made_with:
                return
        self._directory.reopen(record.stage, begun_as)
        if record.stage == "write":
            Journal.of_finished(self._directory.begin("write", begun_as), record.facts)

    def _identity(self, stage: Stage) -> dict[str, Any]:
        return self._identities.of(stage)

    def _not_to_be_mixed(self, stage: Stage) -> dict[str, str]:
        """What an interrupted embed must be gone on with: one store, one arithmetic."""
        if stage.name != "embed":
            return {}
        return {"made_with": f"{self._calls.embed_device.type} {self._calls.precision_of('embed')}"}

    def _key(self, stage: str) -> str | None:
        record = self._directory.record(stage)
        return record.key if record is not None else None


def _indexed_shards(out: Path) -> list[ShardPath]:
    folder = RunDir(out).folder("index")
    if not (folder / "shards.json").is_file():
        raise StaleArtefact(
            f"{out}: no index here; run `shardsieve index SHARDS... -o {out}` first"
        )
    return [ref.path for ref in SampleIndex.open(folder).shards]


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
