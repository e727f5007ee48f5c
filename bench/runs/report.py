"""The report of a million samples: how long it takes to write, to load, and how large it is.

Labels, losses and posteriors are drawn at random; the pictures are noise of a photo's size, in one
real shard that all rows share. Shapes: N samples, K classes.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.timing import in_new_process
from shardsieve.config import Config
from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageRecord
from shardsieve.data.scores import scores_table, write_parquet
from shardsieve.data.table import write_ipc
from shardsieve.environment import SETTINGS
from shardsieve.selection.summary import TAUS

SIZES = (100_000, 1_000_000)
CLASSES, DIM, PICTURES, LOADS = 1000, 64, 400, 5
SIZE_GOAL, LOAD_GOAL_S = 15_000_000, 3.0
# As `shardsieve` itself starts: threads that wait leave the cores to the others.


def measure(*, quick: bool) -> dict[str, Any]:
    """Writes the report of each size in a process of its own, checks it, and loads it.

    Seconds to load are those from the start of the navigation to the end of the load event in a
    fresh page of Chromium: least, median, most. Absent where there is no Chromium.
    """
    sizes = (5_000, 20_000) if quick else SIZES
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for n_samples in sizes:
            folder = Path(name) / str(n_samples)
            truth = _write_run(folder, n_samples)
            counts, spent, peak = in_new_process(_report, folder, environment=SETTINGS)
            page = (folder / "report.html").read_text(encoding="utf-8")
            _check(page, truth, counts)
            rows[str(n_samples)] = {
                "wall_s": round(spent.wall_s, 2),
                "cpu_s": round(spent.cpu_s, 2),
                "peak_bytes": peak,
                "size_bytes": counts["size_bytes"],
                "samples_shown": counts["samples_shown"],
                "load_s": _load(folder / "report.html"),
            }
    small, large = (rows[str(n_samples)] for n_samples in sizes)
    growth = (large["peak_bytes"] - small["peak_bytes"]) / (sizes[1] - sizes[0])
    return {
        "repeats": LOADS,
        "classes": CLASSES,
        "runs": rows,
        "peak_bytes_per_sample": round(growth, 1),
        "goals": _goals(large),
    }


def _goals(large: dict[str, Any]) -> dict[str, bool]:
    goals = {f"under {SIZE_GOAL / 1e6:.0f} MB": large["size_bytes"] < SIZE_GOAL}
    if large["load_s"] is not None:
        goals[f"loads in under {LOAD_GOAL_S:g} s"] = large["load_s"][1] < LOAD_GOAL_S
    return goals


def describe(result: dict[str, Any]) -> str:
    """Returns a line per size, and whether the goals are met."""
    lines = [f"{'samples':>10}  write s  cpu s  peak MB  size MB  shown  load s (median)"]
    for n_samples, row in result["runs"].items():
        load = "no chromium" if row["load_s"] is None else f"{row['load_s'][1]:.2f}"
        lines.append(
            f"{int(n_samples):>10,}  {row['wall_s']:7.1f}  {row['cpu_s']:5.1f}  "
            f"{row['peak_bytes'] / 1e6:7.0f}  {row['size_bytes'] / 1e6:7.2f}  "
            f"{row['samples_shown']:5}  {load}"
        )
    lines.append(f"peak memory grows by {result['peak_bytes_per_sample']} bytes a sample")
    lines += [f"{'met' if met else 'MISSED'}: {goal}" for goal, met in result["goals"].items()]
    return "\n".join(lines)


def _write_run(folder: Path, n_samples: int) -> dict[str, int]:
    """Writes index, features, scores and classes; returns what the page must say."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    where = _write_pictures(folder / "pictures.tar", rng)
    label_N = rng.integers(0, CLASSES, n_samples).astype(np.int32)
    wrong_N, lost_N = rng.random(n_samples) < 0.3, rng.random(n_samples) < 0.002
    picture_N = np.arange(n_samples) % len(where)
    table = pa.table(
        {
            "key": pa.array([f"{row // 1000:06d}/{row % 1000:03d}" for row in range(n_samples)]),
            "shard": np.zeros(n_samples, np.int32),
            "offset": where[picture_N, 0] - 512,
            "size": where[picture_N, 1] + 512,
            "image_offset": where[picture_N, 0],
            "image_size": where[picture_N, 1],
            "label": label_N,
            "reason": np.zeros(n_samples, np.uint8),
            "detail": pa.nulls(n_samples, pa.string()),
        }
    ).cast(SCHEMA)
    stat = (folder / "pictures.tar").stat()
    shards = (
        ShardRef(folder / "pictures.tar", stat.st_size, stat.st_mtime_ns, n_samples=n_samples),
    )
    names = tuple(f"class {number}" for number in range(CLASSES))
    write_ipc(folder / "samples.arrow", table)
    SampleIndex.write_shards(folder, shards, names)
    index = SampleIndex(table, shards, names)
    features = rng.normal(0, 1, (n_samples, DIM)).astype(np.float16)
    write_shard(folder, 0, features, np.zeros(n_samples, np.uint8), [None] * n_samples)
    reason_N = np.where(wrong_N, Reason.HIGH_LOSS, Reason.KEPT).astype(np.uint8)
    reason_N[lost_N] = Reason.UNDECODABLE
    loss_N = np.where(wrong_N, rng.normal(4, 1, n_samples), rng.gamma(1, 0.2, n_samples))
    pred_N = np.where(wrong_N, rng.integers(0, CLASSES, n_samples), label_N)
    losses = LossTable(
        np.where(lost_N, np.nan, loss_N).astype(np.float32),
        np.where(lost_N, np.nan, np.where(wrong_N, -0.8, 0.8)).astype(np.float32),
        np.where(lost_N, -1, pred_N).astype(np.int32),
        np.full(n_samples, -1, np.int8),
    )
    p_clean_N = np.where(wrong_N, rng.random(n_samples) * 0.6, 0.6 + rng.random(n_samples) * 0.4)
    p_clean_N[lost_N] = np.nan
    details = pa.chunked_array([pa.nulls(n_samples, pa.string())])
    scores = scores_table(index, losses, p_clean_N, reason_N, details)
    write_parquet(folder / "scores.parquet", scores)
    kept_N = ~wrong_N & ~lost_N
    write_parquet(folder / "classes.parquet", _classes(names, label_N, kept_N, ~lost_N))
    return {"samples": n_samples, "kept": int(kept_N.sum()), "unreadable": int(lost_N.sum())}


def _write_pictures(path: Path, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    with tarfile.open(path, "w") as tar:
        for number in range(PICTURES):
            packed = io.BytesIO()
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8))
            coarse.resize((256, 192)).save(packed, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = packed.tell()
            packed.seek(0)
            tar.addfile(member, packed)
    with tarfile.open(path) as tar:
        return np.array([(member.offset_data, member.size) for member in tar], np.int64)


def _classes(names: tuple[str, ...], label_N: Any, kept_N: Any, judged_N: Any) -> pa.Table:
    mixture = {"weight": (0.7, 0.3), "mean": (0.2, 4.0), "variance": (0.04, 1.0)}
    return pa.table(
        {
            "label": np.arange(CLASSES, dtype=np.int32),
            "name": list(names),
            "samples": np.bincount(label_N[judged_N], minlength=CLASSES),
            "kept": np.bincount(label_N[kept_N], minlength=CLASSES),
            "rule": ["class"] * CLASSES,
            "why": [""] * CLASSES,
            **{
                f"{what}_{part}": np.full(CLASSES, values[at])
                for what, values in mixture.items()
                for at, part in enumerate(("clean", "noisy"))
            },
        }
    )


def _report(folder: Path) -> dict[str, int]:
    """Runs the stage as the pipeline would; in a process of its own."""
    from shardsieve.page.verdicts import read_scores
    from shardsieve.stages.report import report

    def record(stage: str, seconds: float, **facts: Any) -> StageRecord:
        return StageRecord(
            stage=stage, key="0" * 64, identity={}, seconds=seconds, device="cpu",
            backend="cpu", facts=facts,
        )  # fmt: skip

    embedded = {"backbone": "none", "preprocessing": {"size": 64}, "precision": "fp32"}
    records = {
        "index": record("index", 1.0),
        "embed": record("embed", 9.0, weights={"source": "none"}, **embedded),
        "probe": record("probe", 2.0),
        "select": record("select", 1.0, kept_fraction_by_tau=dict.fromkeys(map(str, TAUS), 0.7)),
        "write": record("write", 1.0, clean=[]),
    }
    result = report(
        SampleIndex.open(folder),
        read_scores(folder / "scores.parquet"),
        pq.read_table(folder / "classes.parquet"),
        records,
        Config(),
        features=FeatureStore.open(folder, 1),
        clean=folder / "clean",
        out=folder,
    )
    return result.counts


def _check(page: str, truth: dict[str, int], counts: dict[str, int]) -> None:
    """Fails unless the page counts what was planted and shows pictures."""
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page[: page.index('id="classes"')]))
    for name in ("kept", "unreadable"):
        assert f"{truth[name]:,} {name}" in text, name
    assert f"{truth['samples']:,} in" in text
    assert page.count("data:image/jpeg;base64,") == counts["samples_shown"] > 100
    assert "data:image/png;base64," in page, "the map"


def _load(file: Path) -> list[float] | None:
    """Seconds until a page has loaded: least, median, most of several; None without Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        return None
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for _ in range(LOADS):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(file.as_uri(), wait_until="load")
            # The filters are in place when the script at the end has run.
            page.wait_for_selector(".filters output:not(:empty)")
            seconds.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return [round(value, 3) for value in np.percentile(seconds, [0, 50, 100]).tolist()]
