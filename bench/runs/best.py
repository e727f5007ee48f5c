"""The recipe `best` at a growing number of samples: seconds of the whole selection.

All of `select`: held-out probes of the default settings, projection, rounds, noise model,
estimates, tables. Features and labels are made up, a fifth of the labels is wrong (see `million`).
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.runs.million import make_run
from bench.timing import in_new_process
from shardsieve.config import load_config
from shardsieve.pipeline import run_stages

# The size of the photos of `bench quality`, then growing ones.
PHOTOS = {"samples": 20_000, "dim": 1280, "classes": 10}
GROWING = [{"samples": size, "dim": 384, "classes": 100} for size in (100_000, 1_000_000)]
GOAL_S = 60


def measure(*, quick: bool) -> dict[str, Any]:
    """Runs `select` once at each size, after `probe`."""
    shapes = [PHOTOS, *GROWING]
    if quick:
        shapes = [{**shape, "samples": shape["samples"] // 50, "dim": 64} for shape in shapes]
    return {"repeats": 1, "sizes": [_measure_one(shape) for shape in shapes]}


def describe(result: dict[str, Any]) -> str:
    """Says what the selection costs, and how that grows."""
    rows = [
        f"{one['samples']:>9,} x {one['dim']:,}, {one['classes']} classes: {one['wall_s']:.1f} s "
        f"({one['cpu_s']:.1f} CPU), {one['peak_bytes'] / 1e9:.2f} GB; "
        f"{one['right']:.1%} of the decisions right"
        for one in result["sizes"]
    ]
    return "\n".join([*rows, *(f"{_met(met)}: {goal}" for goal, met in goals(result).items())])


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    photos, small, large = result["sizes"]
    times = large["samples"] / small["samples"]
    allowed = times * math.log(large["samples"]) / math.log(small["samples"])
    growth = large["cpu_s"] / small["cpu_s"]
    return {
        f"under {GOAL_S} s for the first": photos["wall_s"] < GOAL_S,
        f"{growth:.1f} times the CPU seconds for {times:g} times the samples (n log n: "
        f"{allowed:.1f})": growth <= allowed,
    }


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def _measure_one(shape: dict[str, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="shardsieve-best-") as name:
        folder = Path(name)
        in_new_process(_prepare, folder, shape)
        right, spent, peak = in_new_process(_select, folder)
    return {
        **shape,
        "wall_s": round(spent.wall_s, 2),
        "cpu_s": round(spent.cpu_s, 2),
        "peak_bytes": peak,
        "right": right,
    }


def _prepare(folder: Path, shape: dict[str, int]) -> None:
    make_run(folder, shape["samples"], dim=shape["dim"], classes=shape["classes"], spread=4)
    run_stages(["probe"], folder / "RUN", load_config(values={"device": "cpu"}))


def _select(folder: Path) -> float:
    settings = {"device": "cpu", "select.recipe": "best"}
    run_stages(["select"], folder / "RUN", load_config(values=settings))
    scores = folder / "RUN" / "select" / "scores.parquet"
    kept_N = pq.read_table(scores, columns=["kept"]).column(0).to_numpy()
    return float(np.mean(kept_N == np.load(folder / "right.npy")))
