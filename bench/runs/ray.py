"""The engine `ray` beside the local one on the same cores, and a simulation of larger clusters."""

from __future__ import annotations

import io
import json
import statistics
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.cluster_model import Rates, simulate, sweep
from bench.ray_costs import costs_of_the_engine
from bench.timing import in_bare_process
from shardsieve.environment import SETTINGS

_ONE_THREAD = SETTINGS | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
_RECORDS = Path("bench/records")
# Not measured: no GPU was there. Half and the whole of what is aimed at with ViT-B/16 on an H100.
_ASSUMED_GPU_IMAGES_PER_S = (2_000.0, 9_000.0)
# Not measured: 100 Gbit/s of network for all, and 55 KB an image, as in WebVision.
_ASSUMED_STORAGE_BYTES_PER_S, _ASSUMED_IMAGE_BYTES = 12.5e9, 55e3
_DIM_BYTES = 1280 * 2

_LOCAL, _JOINED, _OWN = "local", "joined", "own"
_WITH_START = "ray, its own cluster"
# Engine and workers.
_WAYS = {
    "local": (_LOCAL, 0),
    "ray": (_JOINED, 2),
    _WITH_START: (_OWN, 2),
    "ray, one worker": (_JOINED, 1),
}


def measure(*, quick: bool) -> dict[str, Any]:
    """Checks that both engines write the same bytes, then times them in turn."""
    images, shard_images, repeats = (600, 50, 1) if quick else (20_000, 1_000, 3)
    side = 64 if quick else 128
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        folder = Path(name)
        _write_shards(folder / "in", images, shard_images)
        # What is compiled once is compiled before the first of them.
        _write_shards(folder / "few", 200, 100)
        _run(folder, "few", side, _LOCAL, 0)
        parts = in_bare_process(costs_of_the_engine, name, environment=_ONE_THREAD)
        rounds = []
        runs: dict[str, list[dict[str, Any]]] = {what: [] for what in _WAYS}
        for number in range(repeats):
            rounds.append(_by_busy_cores(folder, number, side))
            for what, (engine, workers) in _WAYS.items():
                # One worker alone is for the simulation, once.
                if workers != 1 or not number:
                    runs[what].append(_run(folder, "in", side, engine, workers))
        hashes = {run.pop("sha256") for several in runs.values() for run in several}
        assert len(hashes) == 1, "the engines wrote different bytes"
    busy = {several: _median_of([one[several] for one in rounds]) for several in rounds[0]}
    wall = {name: statistics.median(r["wall_s"] for r in several) for name, several in runs.items()}
    rates = Rates(
        # Ray itself has started in `index`, where the workers have loaded torch and timm.
        start_s=parts["load_s"],
        images_per_s=busy[1]["images_per_s"],
        driver_s=parts["driver_s"],
        driver_bytes_per_s=parts["bytes_per_s"],
        image_bytes=busy[1]["image_bytes"],
        feature_bytes=_DIM_BYTES,
        # The page cache of this machine: reading is in the rate of a worker.
        storage_bytes_per_s=1e12,
        probe_s=_probe_s(),
    )
    return {
        "repeats": repeats,
        "images": images,
        "image_size": side,
        "runs": runs,
        "overhead": round(wall["ray"] / wall["local"] - 1, 4),
        "overhead_with_start": round(wall[_WITH_START] / wall["local"] - 1, 4),
        "measured": {"one_core_of": busy, "engine": parts},
        "predictions": _predictions(rates, busy, runs, images, shard_images),
        "clusters": _clusters(rates),
    }


def describe(result: dict[str, Any]) -> str:
    """Says what Ray costs, whether the simulation was right, and what it says of more GPUs."""
    lines = [f"clean of {result['images']:,} images, {result['repeats']} times each:"]
    for name, runs in result["runs"].items():
        wall = statistics.median(run["wall_s"] for run in runs)
        stages = statistics.median(run["stages"]["embed"] for run in runs)
        lines.append(f"  {name:26} {wall:8.1f} s, of that embed {stages:8.1f} s")
    lines.append(
        f"ray over local: {result['overhead']:+.1%} (goal: under 10%); "
        f"{result['overhead_with_start']:+.1%} where the cluster is started for it, and ended"
    )
    lines += [
        f"embed by {row['workers']} workers: predicted {row['predicted_s']:.1f} s, "
        f"measured {row['measured_s']:.1f} s ({row['error']:+.1%}, goal: within 15%)"
        for row in result["predictions"]
    ]
    engine = result["measured"]["engine"]
    lines.append(
        f"Ray and its workers start in {engine['ray_s']:.1f} s, with torch and timm; a network "
        f"loads in {engine['load_s']:.1f} s; a shard takes {1000 * engine['driver_s']:.1f} ms of "
        "the driver"
    )
    for cluster in result["clusters"]:
        rate = cluster["rates"]["images_per_s"]
        lines.append(f"{cluster['images']:,} images, {rate:,.0f} images/s a GPU (assumed):")
        lines += [
            f"  {run['workers']:4} GPUs, {'a shared disk' if run['shared_disk'] else 'none':13}: "
            f"embed {run['embed_s']:9,.0f} s, then {run['after_s']:,.0f} s; "
            f"workers {run['share']['workers']:.0%}, storage {run['share']['storage']:.0%}, "
            f"driver {run['share']['driver']:.0%} busy; limit of embed: {run['embed_limit']}, "
            f"of all: {run['limit']}"
            for run in cluster["runs"]
        ]
    return "\n".join(lines)


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    worst = max(abs(row["error"]) for row in result["predictions"])
    return {
        f"overhead under 10% ({result['overhead']:.1%})": result["overhead"] < 0.10,
        f"predictions within 15% ({worst:.1%})": worst <= 0.15,
    }


def _run(folder: Path, shards: str, side: int, engine: str, workers: int) -> dict[str, Any]:
    """Runs `clean` in a process of its own, on a cluster that is there before where one is said."""
    out = str(folder / f"run-{uuid.uuid4().hex}")
    with _cluster() if engine == _JOINED else nullcontext("") as address:
        arguments = (str(folder / shards), out, engine, address, workers, side)
        told: dict[str, Any] = in_bare_process(run_line, *arguments, environment=SETTINGS)
    return told


@contextmanager
def _cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    store = {"include_dashboard": False, "object_store_memory": 512 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **store})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def _median_of(several: list[dict[str, Any]]) -> dict[str, Any]:
    rate = statistics.median(one["images_per_s"] for one in several)
    return {**several[0], "images_per_s": rate}


def _by_busy_cores(folder: Path, number: int, side: int) -> dict[int, dict[str, Any]]:
    """Times one core alone, and one of two that are busy: cores share memory and caches."""

    def at_once(several: int) -> dict[str, Any]:
        with ThreadPoolExecutor(several) as pool:
            calls = [
                pool.submit(
                    in_bare_process,
                    one_core,
                    str(folder / "in"),
                    str(folder / f"busy{several}-{core}-{number}"),
                    side,
                    environment=_ONE_THREAD,
                )
                for core in range(several)
            ]
            told = [call.result() for call in calls]
        rate = statistics.fmean(one["images_per_s"] for one in told)
        return {"images_per_s": round(rate, 2), "image_bytes": told[0]["image_bytes"]}

    return {several: at_once(several) for several in (1, 2)}


def one_core(shards: str, own: str, side: int) -> dict[str, Any]:
    """Times the network and the decoder on one core."""
    import torch

    from shardsieve.config import EmbedConfig, IndexConfig
    from shardsieve.data.index import SampleIndex
    from shardsieve.progress import Silent
    from shardsieve.stages.embed import ShardEmbedder, pieces_of
    from shardsieve.stages.index import index

    out = Path(own)
    out.mkdir()
    paths = sorted(Path(shards).glob("*.tar"))[:6]
    index(paths, IndexConfig(), out=out, progress=Silent())
    samples = SampleIndex.open(out)
    # As a worker with one core has it.
    work = ShardEmbedder(EmbedConfig(image_size=side), [torch.device("cpu")], 1)
    pieces = pieces_of(samples, [False] * len(paths))
    seconds = []
    start = time.perf_counter()
    for _ in work.run(pieces, out, lambda amount: None):
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    per_shard = len(samples) / len(paths)
    return {
        "images_per_s": round(per_shard / statistics.median(seconds[1:]), 2),
        "image_bytes": round(float(samples.numbers("image_size").mean())),
    }


def run_line(
    shards: str, out: str, engine: str, address: str, workers: int, side: int
) -> dict[str, Any]:
    """Runs `clean` and hashes what came out."""
    import hashlib

    import shardsieve
    from shardsieve.config import load_config
    from shardsieve.engines.choice import Engine

    chosen = Engine()
    if engine != _LOCAL:
        chosen = Engine("ray", workers=workers, address=address or None)
    config = load_config(values={"embed.image_size": side, "device": "cpu"})
    start = time.perf_counter()
    run = shardsieve.clean(shards, out, config, engine=chosen)
    wall = time.perf_counter() - start
    digest = hashlib.sha256()
    for part in ("embed/*.arrow", "probe/*.arrow", "select/*.parquet", "clean/*.tar"):
        for path in sorted(Path(out).glob(part)):
            digest.update(path.read_bytes())
    stages = {name: record.seconds for name, record in run.manifest.stages.items()}
    return {"wall_s": round(wall, 3), "stages": stages, "sha256": digest.hexdigest()}


def _predictions(
    rates: Rates,
    busy: dict[int, dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
    images: int,
    shard_images: int,
) -> list[dict[str, Any]]:
    rows = []
    for workers, name in ((1, "ray, one worker"), (2, "ray")):
        own = replace(rates, images_per_s=busy[workers]["images_per_s"])
        told = simulate(own, images=images, shard_images=shard_images, workers=workers)
        measured = statistics.median(run["stages"]["embed"] for run in runs[name])
        error = told["embed_s"] / measured - 1
        rows.append(
            {
                "workers": workers,
                "predicted_s": told["embed_s"],
                "measured_s": measured,
                "error": round(error, 4),
            }
        )
    return rows


def _clusters(rates: Rates) -> list[dict[str, Any]]:
    """Simulates 100 million images with what a GPU is assumed to do, and all else as measured."""
    return [
        sweep(
            replace(
                rates,
                images_per_s=gpu,
                image_bytes=_ASSUMED_IMAGE_BYTES,
                storage_bytes_per_s=_ASSUMED_STORAGE_BYTES_PER_S,
            ),
            images=100_000_000,
            shard_images=10_000,
        )
        for gpu in _ASSUMED_GPU_IMAGES_PER_S
    ]


def _probe_s() -> float:
    """Seconds of probe and select for one sample, from the newest record of a million samples."""
    file = sorted(_RECORDS.glob("*-million*/result.json"))[-1]
    largest = json.loads(file.read_text())["result"]["sizes"][-1]
    stages = largest["stages"]
    total = float(stages["probe"]["wall_s"] + stages["select"]["wall_s"])
    return total / int(largest["samples"])


def _write_shards(folder: Path, images: int, shard_images: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    encoded = []
    for label in range(10):
        for _ in range(20):
            colour = np.array([25 * label, 255 - 25 * label, 128])
            pixels = np.clip(colour + rng.normal(0, 40, (96, 96, 3)), 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=90)
            encoded.append((label, out.getvalue()))
    for shard in range(-(-images // shard_images)):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
            for number in range(shard * shard_images, min((shard + 1) * shard_images, images)):
                label, content = encoded[int(rng.integers(len(encoded)))]
                told = label if rng.random() > 0.2 else int(rng.integers(10))
                for extension, data in (("jpg", content), ("cls", str(told).encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
