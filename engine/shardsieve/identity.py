"""The stages, what each depends on, and what identifies its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardsieve.config import Config
from shardsieve.data.record import content_key
from shardsieve.models.weights import weights_identity
from shardsieve.shards.labels import TABLE_SUFFIXES
from shardsieve.shards.locate import locate_shards
from shardsieve.shards.samples import stat_shard


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
BY_NAME = {stage.name: stage for stage in STAGES}


def stage_identity(
    stage: Stage, config: Config, shards: Sequence[Path], key_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """Returns everything that can change the result of a stage, and nothing else.

    Device, workers and backend are left out on purpose: features may be made on one machine and
    used on another.

    Args:
        stage: The stage.
        config: All settings, with absolute paths.
        shards: The input shards.
        key_of: Gives the key of a finished stage, None when there is none.

    Raises:
        ShardError: A shard is gone.
        BackboneError: The weights are gone.
    """
    settings = getattr(config, stage.name).model_dump(mode="json")
    identity: dict[str, Any] = {"stage": stage.name, "version": stage.version}
    if stage.name == "index":
        settings.pop("max_bad_fraction")
        identity["shards"] = _stat_all(shards, with_folder=True)
        identity["files"] = _stat_label_files(config)
    elif stage.name == "embed":
        # Not the index as a whole: new labels leave the features as they are.
        identity["shards"] = _stat_all(shards, with_folder=False)
        identity["image"] = list(config.index.image)
        identity["weights"] = weights_identity(config.embed)
        settings.pop("checkpoint")
    else:
        identity["inputs"] = {need: key_of(need) for need in stage.needs}
    if stage.name in ("probe", "tune"):
        identity["seed"] = config.seed
    if stage.name in ("select", "tune") and config.select.loss == "gce":
        identity["q"] = config.probe.q
    if stage.name == "tune" and config.tune.validation:
        paths = [Path(path) for path in config.tune.validation]
        identity["validation"] = _stat_all(paths, with_folder=True)
    if stage.name == "report":
        # Shown if it is there and belongs to this run; not needed.
        tuned = key_of("tune")
        current = tuned == content_key(stage_identity(BY_NAME["tune"], config, shards, key_of))
        identity["inputs"]["tune"] = tuned if current else None
    identity["settings"] = settings
    return identity


def _stat_all(paths: Sequence[Path], *, with_folder: bool) -> str:
    rows = []
    for path in paths:
        ref = stat_shard(path)
        name = str(path) if with_folder else path.name
        rows.append([name, ref.size_bytes, ref.mtime_ns])
    return content_key({"shards": rows})


def _stat_label_files(config: Config) -> str | None:
    files = [config.index.classes] if config.index.classes else []
    if config.index.labels.lower().endswith(TABLE_SUFFIXES):
        files.append(Path(config.index.labels))
    present = [file for file in files if file.is_file()]
    return _stat_all(present, with_folder=True) if present else None


def absolute_paths(config: Config) -> Config:
    """Makes paths independent of the folder the command is called from."""
    samples, source = config.index, config.embed
    labels = samples.labels
    if labels.lower().endswith(TABLE_SUFFIXES):
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
