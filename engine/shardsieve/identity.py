"""The stages, what each depends on, and what identifies its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shardsieve.config import Config
from shardsieve.config_tune import HOW
from shardsieve.data.location import RemotePath, ShardPath, shard_path
from shardsieve.data.record import content_key
from shardsieve.models.weights import weights_identity
from shardsieve.shards.labels import names_table
from shardsieve.shards.locate import locate_shards
from shardsieve.shards.samples import stat_shard

_LOOK_UPS = 16


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
    Stage("index", 2, ()),
    Stage("embed", 3, ("index",)),
    Stage("probe", 2, ("index", "embed")),
    Stage("select", 5, ("index", "embed", "probe")),
    Stage("tune", 2, ("index", "embed", "probe", "select")),
    Stage("write", 2, ("index", "select")),
    Stage("report", 2, ("index", "embed", "probe", "select", "write")),
)
BY_NAME = {stage.name: stage for stage in STAGES}


class Identities:
    """Everything that can change the result of a stage, and nothing else.

    Device, workers and backend are left out on purpose: features may be made on one machine and
    used on another. Files are looked at once: a run sees its input as it was at the start.
    """

    def __init__(
        self,
        config: Config,
        shards: Sequence[ShardPath],
        key_of: Callable[[str], str | None],
        decisions: str | None = None,
    ) -> None:
        """Takes what a call is made with.

        Args:
            config: All settings, with absolute paths.
            shards: The input shards.
            key_of: Gives the key of a finished stage, None when there is none.
            decisions: Hash of what people decided about samples, None for nothing.
        """
        self._config = config
        self._shards = shards
        self._key_of = key_of
        self._decisions = decisions

    def of(self, stage: Stage) -> dict[str, Any]:
        """Returns the identity of a stage's result.

        Raises:
            ShardError: A shard is gone.
            BackboneError: The weights are gone.
        """
        config = self._config
        settings = getattr(config, stage.name).model_dump(mode="json")
        identity: dict[str, Any] = {"stage": stage.name, "version": stage.version}
        if stage.name == "index":
            settings.pop("max_bad_fraction")
            identity["shards"] = content_key({"shards": self._stats})
            identity["files"] = self._label_files
        elif stage.name == "embed":
            # Not the index as a whole: new labels leave the features as they are. Nor the folder:
            # shards that were moved are the same shards.
            moved = [[Path(name).name, *rest] for name, *rest in self._stats]
            identity["shards"] = content_key({"shards": moved})
            identity["image"] = list(config.index.image)
            identity["weights"] = self.weights
            settings.pop("checkpoint")
            # More of them are only faster.
            settings.pop("devices")
        else:
            identity["inputs"] = {need: self._key_of(need) for need in stage.needs}
        if stage.name == "write" and config.write.order == "shuffle":
            identity["seed"] = config.seed
        if stage.name == "select" and self._decisions is not None:
            identity["decisions"] = self._decisions
        if stage.name == "select" and config.select.held_out:
            identity["held_out"] = self._held_out
        if stage.name in ("probe", "tune"):
            identity["seed"] = config.seed
        if stage.name == "probe" and config.probe.processes == 1:
            # As in runs of before there could be more.
            settings.pop("processes")
        if stage.name in ("select", "tune") and config.select.loss == "gce":
            identity["q"] = config.probe.q
        if stage.name == "tune":
            settings = {name: value for name, value in settings.items() if name not in HOW}
            # Only tuning needs them to be there; gone, they make a finished tune out of date.
            identity["validation"] = _stat_present(config.tune.validation)
        if stage.name == "report":
            # Shown if it is there and belongs to this run; not needed.
            tuned = self._key_of("tune")
            current = tuned is not None and tuned == content_key(self.of(BY_NAME["tune"]))
            identity["inputs"]["tune"] = tuned if current else None
        identity["settings"] = settings
        return identity

    @cached_property
    def weights(self) -> dict[str, str]:
        """What identifies the backbone's weights."""
        return weights_identity(self._config.embed)

    @cached_property
    def _stats(self) -> list[list[Any]]:
        return _stat_all(self._shards)

    @cached_property
    def _held_out(self) -> dict[str, Any]:
        labels = self._config.held_out_labels
        table = [Path(labels)] if names_table(labels) else []
        return {
            "shards": _stat_present(self._config.select.held_out),
            "labels": [labels, _stat_all([file for file in table if file.is_file()])],
        }

    @cached_property
    def _label_files(self) -> list[list[Any]]:
        settings = self._config.index
        files = [settings.classes] if settings.classes else []
        if names_table(settings.labels):
            files.append(Path(settings.labels))
        return _stat_all([file for file in files if file.is_file()])


def judgement_key(identity: Mapping[str, Any]) -> str:
    """Returns the hash of what p_clean of the recipe `best` depends on.

    Args:
        identity: Of a selection; tau, quotas and people's decisions play no part.
    """
    judged = {name: identity[name] for name in ("stage", "version", "inputs")}
    return content_key({**judged, "folds": identity["settings"]["folds"]})


def _stat_present(named: Sequence[str]) -> list[list[Any]]:
    paths = [shard_path(text) for text in named]
    return _stat_all([path for path in paths if isinstance(path, RemotePath) or path.is_file()])


def _stat_all(paths: Sequence[ShardPath]) -> list[list[Any]]:
    # A URL takes as long as its server: many are asked at once.
    with ThreadPoolExecutor(_LOOK_UPS) as pool:
        remote = iter(pool.map(stat_shard, [path for path in paths if _is_url(path)]))
    refs = [next(remote) if _is_url(path) else stat_shard(path) for path in paths]
    return [[str(ref.path), ref.size_bytes, ref.mtime_ns] for ref in refs]


def _is_url(path: ShardPath) -> bool:
    return isinstance(path, RemotePath)


def absolute_paths(config: Config, *, tuned: bool, selected: bool = False) -> Config:
    """Makes paths independent of the folder the command is called from.

    Args:
        config: Settings as given.
        tuned: Whether the validation shards are needed, and so must be there.
        selected: Whether samples are compared with held-out shards, to which those for validation
            belong. What was compared stays in the settings: a later call need not name it again.

    Raises:
        ShardError: A validation or held-out shard is missing.
    """
    samples, source = config.index, config.embed
    labels = samples.labels
    if names_table(labels):
        labels = str(Path(labels).expanduser().resolve())
    classes = samples.classes.expanduser().resolve() if samples.classes else None
    checkpoint = source.checkpoint
    if checkpoint and checkpoint != "hub" and not checkpoint.startswith("package:"):
        checkpoint = str(Path(checkpoint).expanduser().resolve())
    removed = config.write.removed.expanduser().resolve() if config.write.removed else None
    validation, validation_labels = config.tune.validation, config.tune.validation_labels
    if validation and tuned:
        validation = tuple(str(path) for path in locate_shards(validation))
    held_out = config.select.held_out
    if selected:
        named = [locate_shards(some) for some in (held_out, validation) if some]
        held_out = tuple(dict.fromkeys(str(path) for paths in named for path in paths))
    if validation_labels is not None and names_table(validation_labels):
        validation_labels = str(Path(validation_labels).expanduser().resolve())
    return config.model_copy(
        update={
            "index": samples.model_copy(update={"labels": labels, "classes": classes}),
            "embed": source.model_copy(update={"checkpoint": checkpoint}),
            "select": config.select.model_copy(update={"held_out": held_out}),
            "tune": config.tune.model_copy(
                update={"validation": validation, "validation_labels": validation_labels}
            ),
            "write": config.write.model_copy(update={"removed": removed}),
        }
    )
