"""How long cleaning will take here, and what holds it up: measured on a part of the shards.

Small cleans of real samples are run; each stage's seconds are a constant and so much a sample.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.config import Config
from shardsieve.data.index import SampleIndex
from shardsieve.data.manifest import describe_machine
from shardsieve.errors import BackboneError, DataError
from shardsieve.identity import absolute_paths
from shardsieve.pipeline import run_stages
from shardsieve.progress import Progress, Silent
from shardsieve.run import Run
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.locate import locate_shards
from shardsieve.shards.samples import stat_shard

STAGES = ("index", "embed", "probe", "select", "write", "report")
# Shards that are looked at, spread over all.
_SHARDS = 8
_FEW = 48
_MOST = 4096
_END_OF_TAR = bytes(1024)
# The stages after embed: seconds of their measurement, and what it may read.
_REST_S = 15.0
_MOST_WIDE = 8192
_WIDE_BYTES = 256e6
_THUMBNAIL = 32
# Below this a stage's seconds a sample are noise.
_SHORTEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of a stage: `first_s` or `again_s`, and `sample_s` for each sample.

    Attributes:
        first_s: In a new process: loading of libraries and networks, compilation.
        again_s: In a process that has done it before.
        sample_s: For each sample.
    """

    first_s: float
    again_s: float
    sample_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was measured, and what follows from it.

    Attributes:
        samples: How many samples would be cleaned.
        measured: On how many samples.
        costs: Of each stage.
        parts: Samples a second of each part: read, decode, model, embed, probe, select, write.
        bottleneck: The slowest part of the line.
        of_model_speed: Share of the network's own speed at which images are embedded.
        seconds: Of the whole line in a new process.
        warm_seconds: In this process.
        size_bytes: What the run directory will take.
        settings: Backbone, image size, batch, engine, number format, decoder.
        machine: Where it was measured.
    """

    samples: int
    measured: int
    costs: dict[str, StageCost]
    parts: dict[str, float]
    bottleneck: str
    of_model_speed: float
    seconds: float
    warm_seconds: float
    size_bytes: int
    settings: dict[str, Any]
    machine: dict[str, str | int] = field(default_factory=describe_machine)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return asdict(self)


def forecast(
    patterns: Sequence[str],
    config: Config,
    *,
    samples: int | None = None,
    budget_s: float = 45.0,
    progress: Progress | None = None,
) -> Forecast:
    """Cleans a few samples of the shards, then more of them, and works out what all would cost.

    Nothing is left behind, and nothing is written to `write.removed` or uploaded.

    Args:
        patterns: The shards, as `clean` takes them.
        config: All settings.
        samples: How many are to be cleaned; default: as many as the shards hold.
        budget_s: Seconds that the larger of the cleans may take, about.
        progress: Where to say what goes on.

    Raises:
        ShardsieveError: As `clean`.
    """
    progress = progress or Silent()
    config = absolute_paths(config, tuned=False)
    with tempfile.TemporaryDirectory(prefix="shardsieve-forecast-") as name:
        folder = Path(name)
        index, total = _look_at(patterns, config, folder)
        few = _cut_out(index, min(_FEW, len(index)), folder / "few.tar")
        progress.note(f"forecast: a clean of {few:,} samples, twice")
        first = _timed_clean(folder, "first", "few.tar", config)
        again = _timed_clean(folder, "again", "few.tar", config)
        many = _cut_out(index, _as_many(again, few, len(index), budget_s), folder / "many.tar")
        progress.note(f"forecast: a clean of {many:,} samples")
        more = _timed_clean(folder, "more", "many.tar", config)
        costs = _costs(first, again, more, few, many)
        costs |= _costs_of_the_rest(index, folder, config, first, again, few)
        return _put_together(samples or total, many, costs, again, more, few)


def _kept_inside(config: Config, folder: Path) -> Config:
    removed = folder / "removed" if config.write.removed else None
    write = config.write.model_copy(update={"to": None, "removed": removed})
    return config.model_copy(update={"write": write})


def _look_at(patterns: Sequence[str], config: Config, folder: Path) -> tuple[SampleIndex, int]:
    """Indexes some of the shards; returns them and how many samples all hold, by their size."""
    paths = locate_shards(patterns)
    spread = np.unique(np.linspace(0, len(paths) - 1, _SHARDS).astype(int))
    chosen = [paths[number] for number in spread]
    out = folder / "look"
    run_stages(["index"], out, config, [str(path) for path in chosen])
    index = Run(out).index
    if not index.readable_N.any():
        raise DataError("none of the samples that were looked at has an image and a label")
    if len(chosen) == len(paths):
        return index, len(index)
    seen = sum(ref.size_bytes for ref in index.shards)
    everything = sum(stat_shard(path).size_bytes for path in paths)
    return index, round(len(index) * everything / max(seen, 1))


def _cut_out(index: SampleIndex, wanted: int, file: Path) -> int:
    """Writes samples that are spread over the index as a tar; returns how many."""
    rows = np.unique(np.linspace(0, len(index) - 1, wanted).astype(np.int64))
    shard_N, offset_N, size_N = (index.numbers(name) for name in ("shard", "offset", "size"))
    files = ShardFiles([ref.path for ref in index.shards])
    try:
        with file.open("wb") as out:
            for row in rows.tolist():
                out.write(files.read(int(shard_N[row]), int(offset_N[row]), int(size_N[row])))
            out.write(_END_OF_TAR)
    finally:
        files.close()
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A small clean: seconds of each stage, and of what is around them."""

    seconds: dict[str, float]
    size_bytes: int
    embed: dict[str, Any]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def _timed_clean(folder: Path, name: str, shard: str, config: Config) -> _Timed:
    out = folder / name
    inside = _kept_inside(config, out)
    start = time.perf_counter()
    run = run_stages(STAGES, out, inside, [str(folder / shard)])
    wall_s = time.perf_counter() - start
    stages = run.manifest.stages
    seconds = {stage: stages[stage].seconds for stage in STAGES}
    size = sum(
        (Path(where) / file).stat().st_size for where, _, files in os.walk(out) for file in files
    )
    seconds["between"] = max(wall_s - sum(seconds.values()), 0.0)
    return _Timed(seconds, size, stages["embed"].facts)


def _as_many(again: _Timed, few: int, available: int, budget_s: float) -> int:
    """As many samples as fit into the budget, by what a few of them took."""
    sample_s = again.embed["time"]["wall_s"] / few
    affordable = int(budget_s / max(sample_s, 1e-4))
    return min(available, _MOST, max(affordable, 2 * few))


def _costs(first: _Timed, again: _Timed, more: _Timed, few: int, many: int) -> dict[str, StageCost]:
    costs = {}
    for stage, again_s in again.seconds.items():
        if many > few:
            sample_s = max((more.seconds[stage] - again_s) / (many - few), 0.0)
        else:
            sample_s = again_s / few
        costs[stage] = StageCost(
            first_s=round(max(first.seconds[stage] - sample_s * few, 0.0), 3),
            again_s=round(max(again_s - sample_s * few, 0.0), 3),
            sample_s=sample_s,
        )
    return costs


def _costs_of_the_rest(
    index: SampleIndex, folder: Path, config: Config, first: _Timed, again: _Timed, few: int
) -> dict[str, StageCost]:
    """Measures all stages but embed on more samples than there is time to embed at full size.

    Their features come from thumbnails, as many and as long as the real ones, in much less time.
    """
    spent = again.embed["time"]
    side = again.embed["preprocessing"]["size"]
    shrunk = (_THUMBNAIL / side) ** 2
    sample_s = sum(
        spent.get(name, 0.0) * share
        for name, share in (("read_s", 1), ("decode_s", 1), ("model_s", shrunk))
    )
    fits_s = _REST_S / max(sample_s / few, 1e-5)
    mean_size = float(np.mean(index.numbers("size")))
    wanted = min(len(index), _MOST_WIDE, int(fits_s), int(_WIDE_BYTES / mean_size))
    if wanted < 4 * few or side <= _THUMBNAIL:
        return {}
    wide = _cut_out(index, wanted, folder / "wide.tar")
    embed = config.embed.model_copy(update={"image_size": _THUMBNAIL})
    try:
        timed = _timed_clean(folder, "wide", "wide.tar", config.model_copy(update={"embed": embed}))
    except BackboneError:
        # One that takes one image size only.
        return {}
    costs = _costs(first, again, timed, few, wide)
    del costs["embed"]
    return costs


def _put_together(
    samples: int,
    measured: int,
    costs: dict[str, StageCost],
    again: _Timed,
    more: _Timed,
    few: int,
) -> Forecast:
    spent = more.embed["time"]
    embedding_s = max(spent["wall_s"], 1e-9)
    # What the threads do side by side: their seconds over as many threads as were at it.
    at_it = max(
        sum(spent.get(name, 0.0) for name in ("read_s", "decode_s", "model_s")) / embedding_s, 1.0
    )
    parts = {
        part: measured * at_it / max(spent.get(f"{part}_s", 0.0), 1e-6)
        for part in ("read", "decode", "model")
    }
    if "wait_s" in spent:
        # Beside a GPU the threads only feed it.
        parts["model"] = measured / max(spent["model_s"], 1e-6)
    parts["embed"] = measured / embedding_s
    for stage in ("probe", "select", "write"):
        parts[stage] = 1 / max(costs[stage].sample_s, _SHORTEST_S)
    per_sample = (more.size_bytes - again.size_bytes) / max(measured - few, 1)
    fixed_bytes = max(again.size_bytes - per_sample * few, 0.0)
    slow = {name: rate for name, rate in parts.items() if name != "embed"}
    return Forecast(
        samples=samples,
        measured=measured,
        costs=costs,
        parts={name: round(rate, 1) for name, rate in parts.items()},
        bottleneck=min(slow, key=lambda name: slow[name]),
        of_model_speed=spent.get("of_model_speed", 1.0),
        seconds=round(sum(c.first_s + samples * c.sample_s for c in costs.values()), 1),
        warm_seconds=round(sum(c.again_s + samples * c.sample_s for c in costs.values()), 1),
        size_bytes=round(fixed_bytes + samples * max(per_sample, 0.0)),
        settings={
            "backbone": more.embed["backbone"],
            "image_size": more.embed["preprocessing"]["size"],
            "precision": more.embed["precision"],
            "engine": more.embed["engine"],
            "decode": more.embed["decode"],
            "batch_size": more.embed["batch_size"],
        },
    )
