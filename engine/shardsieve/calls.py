"""How each stage is called: which tables, settings and devices it gets.

What a stage needs is loaded when it is due: torch and timm take seconds, and a stage that is up to
date does not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardsieve.config import Config, Precision
from shardsieve.data.decisions import ReviewDecisions
from shardsieve.data.features import check_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.location import ShardPath, shard_path
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import DECIDED_REASONS, Reason
from shardsieve.data.record import StageRecord, StageResult, content_key
from shardsieve.data.scores import Decisions, Suggestions
from shardsieve.engines.executor import Executor
from shardsieve.engines.local import Local, cores_for
from shardsieve.errors import ConfigError, DataError
from shardsieve.identity import judgement_key
from shardsieve.leaks import find_leaks
from shardsieve.progress import Progress
from shardsieve.run import Run
from shardsieve.rundir import RunDir
from shardsieve.selection.tables import TRANSITION, read_transition
from shardsieve.stages.index import index
from shardsieve_kernels import resolve_backend

if TYPE_CHECKING:
    import torch


class Calls:
    """The stages over one run directory, with the settings of one call."""

    def __init__(
        self,
        directory: RunDir,
        config: Config,
        shards: Sequence[ShardPath],
        progress: Progress,
        current_records: Callable[[], dict[str, StageRecord]],
        decisions: ReviewDecisions,
        executor: Executor | None = None,
    ) -> None:
        """Takes what all stages share.

        Args:
            directory: Where results lie.
            config: All settings, with absolute paths.
            shards: The input shards.
            progress: Where stages report to.
            current_records: Gives the records of the stages that are up to date, for the report.
            decisions: What people decided about samples.
            executor: Who does the work that is done shard by shard; default: this process.

        Raises:
            BackendUnavailable: The kernels that were asked for cannot run here.
        """
        self._directory = directory
        self._config = config
        self._shards = shards
        self._progress = progress
        self._current_records = current_records
        self._decisions = decisions
        self._executor = executor or Local()
        self._run = Run(directory.path)
        self._precisions: dict[str, Precision] = {}
        # Whoever keeps the networks off the GPU means the kernels, too.
        keep_off_gpu = config.backend == "auto" and config.device == "cpu"
        self.backend = resolve_backend("cpu" if keep_off_gpu else config.backend)

    def perform(self, stage: str, out: Path, identity: Mapping[str, Any]) -> StageResult:
        """Runs a stage into a folder.

        Args:
            stage: Its name.
            out: The folder.
            identity: What identifies the result, and what must not be mixed within it.
        """
        calls: Mapping[str, Callable[[Path], StageResult]] = {
            "index": self._index,
            "embed": lambda out: self._embed(out, identity),
            "probe": self._probe,
            "select": lambda out: self._select(out, identity),
            "tune": self._tune,
            "write": self._write,
            "report": self._report,
        }
        return calls[stage](out)

    @cached_property
    def device(self) -> torch.device:
        """Where networks run; looked for when it is needed.

        Raises:
            DeviceUnavailable: It was named and cannot be used.
        """
        from shardsieve.models.precision import resolve_device

        return resolve_device(self._executor.device_here(self._config.device))

    @cached_property
    def embed_device(self) -> torch.device:
        """Where `embed` and `tune` run networks: perhaps elsewhere than the other stages.

        Raises:
            DeviceUnavailable: It was named and cannot be used.
        """
        return self._executor.device(self._config.device)

    def precision_of(self, stage: str) -> Precision:
        """Returns the number format of `embed` or `tune` there.

        Raises:
            DeviceUnavailable: The device cannot compute in it.
        """
        if stage not in self._precisions:
            # On a cluster a worker with a GPU is asked.
            asked = {"embed": self._config.embed.precision, "tune": self._config.tune.precision}
            found = self._executor.precision(asked[stage], self.embed_device)
            self._precisions[stage] = found
        return self._precisions[stage]

    @property
    def _embed_devices(self) -> list[torch.device]:
        several = self._config.embed.devices == "all"
        return self._executor.devices(self.embed_device) if several else [self.embed_device]

    def device_of(self, stage: str) -> torch.device | str:
        """Returns what the record of a stage names as its device."""
        if stage in ("embed", "tune") or (stage == "probe" and self._config.probe.processes > 1):
            return self.embed_device
        return self.device if stage == "probe" else "cpu"

    @cached_property
    def _processes(self) -> int:
        """How many processes share the steps of `tune`."""
        tune, device = self._config.tune, self.embed_device
        # More than a step has images would wait for the others.
        alone = device.type == "cpu" and tune.batch_norm == "trained"
        return self._executor.processes(
            "tune", tune.processes, device, 1 if alone else tune.batch_size
        )

    def refuse_tuning_that_cannot_work(self) -> None:
        """Raises what `tune` would raise later, perhaps after hours of other stages.

        Raises:
            ConfigError: A setting of `tune` cannot work here.
            DeviceUnavailable: There are fewer GPUs than processes.
        """
        tune = self._config.tune
        if tune.tensorboard or tune.optimiser not in ("adamw", "sgd"):
            # torch and timm take seconds to load.
            from shardsieve.tuning.refusals import refuse_what_is_missing

            refuse_what_is_missing(tune)
        if tune.labels in ("corrected", "soft") and self._config.select.recipe != "best":
            raise ConfigError(f"tune.labels = {tune.labels} needs select.recipe = best")
        if tune.processes > 1:
            from shardsieve.engines.processes import check_batch_norm

            check_batch_norm(self._processes, self.embed_device, tune.batch_norm)

    def refuse_probe_that_cannot_work(self) -> None:
        """Says early that there cannot be as many processes of `probe` as the settings ask for.

        Raises:
            ConfigError: One device was named.
            DeviceUnavailable: There are fewer GPUs.
        """
        probe = self._config.probe
        if probe.processes > 1:
            most = probe.batch_size
            self._executor.processes("probe", probe.processes, self.embed_device, most)

    def refuse_engine(self) -> None:
        """Says early that images cannot be embedded as the settings ask.

        Raises:
            DeviceUnavailable: The engine, number format or decoder cannot be had here.
        """
        from shardsieve.models.engine import refuse_engine

        refuse_engine(self._config.embed, self.embed_device)

    def _index(self, out: Path) -> StageResult:
        return index(
            self._shards,
            self._config.index,
            out=out,
            progress=self._progress,
            previous=self._directory.folder("index"),
            threads=cores_for(self._config.workers),
            backend="reference" if self.backend == "reference" else "cpu",
            executor=self._executor,
        )

    def _embed(self, out: Path, identity: Mapping[str, Any]) -> StageResult:
        from shardsieve.stages.embed import embed

        return embed(
            self._run.index,
            # The same for all workers, whatever each would choose.
            self._config.embed.model_copy(update={"precision": self.precision_of("embed")}),
            out=out,
            devices=self._embed_devices,
            workers=self._executor.decoders(self._config.workers, self.embed_device),
            max_bad_fraction=self._config.index.max_bad_fraction,
            progress=self._progress,
            previous=self._directory.folder("embed"),
            made_with=content_key({k: v for k, v in identity.items() if k != "shards"}),
            executor=self._executor,
        )

    def _probe(self, out: Path) -> StageResult:
        from shardsieve.stages.probe import Inputs, probe, probe_together

        folder = self._directory.folder
        if self._config.probe.processes > 1:
            return probe_together(
                Inputs.of(folder("index"), folder("embed"), out),
                self._config.probe,
                seed=self._config.seed,
                device=self.embed_device,
                backend=self._config.backend,
                progress=self._progress,
                executor=self._executor,
            )
        # Read once more than needed: a flipped bit must not become somebody's wrong label.
        for shard in range(len(self._run.index.shards)):
            check_shard(folder("embed"), shard)
        return probe(
            self._run.index,
            self._run.features,
            self._config.probe,
            out=out,
            seed=self._config.seed,
            device=self.device,
            backend=self.backend,
            progress=self._progress,
        )

    def _select(self, out: Path, identity: Mapping[str, Any]) -> StageResult:
        from shardsieve.stages.select import select

        record = self._directory.record("select")
        earlier = None if record is None else (self._directory.folder("select"), record.facts)
        return select(
            self._run.index,
            self._run.features,
            LossTable.open(self._directory.folder("probe") / "losses.arrow"),
            self._config.select,
            probe_config=self._config.probe,
            out=out,
            seed=self._config.seed,
            # Only the recipe `best` trains.
            device=self.device if self._config.select.recipe == "best" else None,
            backend=self.backend,
            decisions=self._decisions,
            judged_by=judgement_key(identity),
            earlier=earlier,
            leaks=find_leaks(
                self._run.index,
                self._config,
                identity,
                out=out,
                earlier=earlier,
                executor=self._executor,
                threads=cores_for(self._config.workers),
                progress=self._progress,
            ),
            progress=self._progress,
        )

    def _tune(self, out: Path) -> StageResult:
        from shardsieve.stages.tune import tune, with_suggestions
        from shardsieve.tuning.job import Job, Labelled
        from shardsieve.tuning.refusals import refuse_small_cache

        config = self._config
        refuse_small_cache(self._run.index.shards)
        decisions = Decisions.read(self._scores_file)
        # A model learns the labels as they are after review.
        samples = self._run.index.relabelled(decisions.final_label_N)
        usable_N = samples.readable_N & (self._run.features.reason_N == Reason.KEPT)
        validation = self._validation(out / "validation", samples.classes)
        job = Job(
            samples=Labelled.of(samples, usable_N),
            classes=samples.classes,
            kept_N=decisions.kept_N,
            decided_N=np.isin(decisions.reason_N, DECIDED_REASONS),
            loss_N=LossTable.open(self._directory.folder("probe") / "losses.arrow").loss_N,
            beliefs=None,
            head=(self._directory.folder("probe") / "head.safetensors").read_bytes(),
            config=config.tune.for_recipe(config.select.recipe).model_copy(
                update={"processes": self._processes}
            ),
            embed=config.embed,
            select=config.select,
            q=config.probe.q,
            validation=Labelled.of(validation) if validation is not None else None,
            out=out,
            seed=config.seed,
            precision=self.precision_of("tune"),
            workers=self._executor.decoders_together(
                config.workers, self.embed_device, self._processes
            ),
            backend=self.backend,
        )
        if job.config.labels != "given":
            job = with_suggestions(job, Suggestions.read(self._scores_file))
        corrected = int(np.count_nonzero(job.kept_N & ~decisions.kept_N))
        result = tune(
            job, device=self.embed_device, progress=self._progress, executor=self._executor
        )
        result.counts["corrected"] = corrected
        if corrected:
            result.notes.append(
                f"{corrected:,} removed samples are trained on as well, under the label that the "
                "selection suggests (tune.labels = corrected)"
            )
        return result

    def _validation(self, folder: Path, classes: tuple[str, ...]) -> SampleIndex | None:
        """Indexes the validation shards, if there are any."""
        config = self._config
        if not config.tune.validation:
            return None
        folder.mkdir(exist_ok=True)
        try:
            index(
                [shard_path(path) for path in config.tune.validation],
                config.index.model_copy(update={"labels": config.held_out_labels}),
                out=folder,
                progress=self._progress,
                classes=classes,
            )
        except DataError as error:
            raise DataError(
                f"validation shards: {error}. Their labels are set by tune.validation_labels"
            ) from error
        return SampleIndex.open(folder)

    def _write(self, out: Path) -> StageResult:
        from shardsieve.stages.write import write

        return write(
            self._run.index,
            self._scores_file,
            self._config.write,
            seed=self._config.seed,
            out=out,
            run=self._directory.path.resolve(),
            progress=self._progress,
            executor=self._executor,
        )

    def _report(self, out: Path) -> StageResult:
        from shardsieve.page.verdicts import read_scores
        from shardsieve.stages.report import report

        file = self._directory.folder("select") / TRANSITION
        return report(
            self._run.index,
            read_scores(self._scores_file),
            self._run.classes,
            self._current_records(),
            self._config,
            features=self._run.features,
            transition_KK=read_transition(file) if file.is_file() else None,
            clean=self._directory.folder("write"),
            out=out,
        )

    @property
    def _scores_file(self) -> Path:
        return self._directory.folder("select") / "scores.parquet"
