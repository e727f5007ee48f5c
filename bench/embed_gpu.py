"""The part of `bench.runs.embed` that needs a GPU: large networks at 224 pixels.

The weights are random: no speed depends on them. The images are drawn, 500 pixels wide, as photos
of the web are; a few hundred different ones stand in the shards again and again.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.jpegs import drawn, write_tars
from bench.timing import cost, interleaved
from shardsieve.config import EmbedConfig, IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.embedding import Runner
from shardsieve.progress import Silent
from shardsieve.shards.prefetch import Rows, in_order
from shardsieve.stages.index import index

# timm's names, and the images a second that one H100 should embed.
GOALS = {
    "vit_base_patch16_224": 9_000,
    "convnext_base": 8_000,
    "vit_large_patch14_clip_224": 2_200,
}
OF_MODEL = 0.9
SIDE = 224
_WIDTH, _HEIGHT = 500, 375
_DISTINCT, _PER_SHARD, _REPEATS = 256, 2_048, 2
# All of it takes at least so long: every thread first decodes a batch, and nothing is computed yet.
_LEAST_SECONDS = 12.0


def measure_gpu(*, quick: bool) -> dict[str, Any]:
    """Images/s of reading, decoding, computing and all of it, by network and decoder."""
    n_images, seconds = (1_024, 0.0) if quick else (16_384, _LEAST_SECONDS)
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        samples = write_photos(Path(name) / "shards", n_images)
        cases = [
            measure_network(
                network, samples, decode, torch.device("cuda"), Path(name), least_seconds=seconds
            )
            for network in GOALS
            for decode in ("fast", "device")
        ]
    return {
        "repeats": _REPEATS,
        "images": f"{n_images} JPEGs (drawn), {_WIDTH} x {_HEIGHT}, to {SIDE} px",
        "cores": len(os.sched_getaffinity(0)),
        "cases": cases,
    }


def goals_gpu(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met, each network by the faster of its decoders."""
    met = {}
    for network, goal in GOALS.items():
        cases = [case for case in result["cases"] if case["network"] == network]
        best = max(cases, key=lambda case: float(case["images_per_s"]["all of it"]))
        rate = best["images_per_s"]["all of it"]
        named = f"{network}, decode = {best['decode']}"
        met[f"{named}: {goal:,} images/s ({rate:,.0f})"] = rate >= goal
        met[f"{named}: {OF_MODEL:.0%} of the model alone ({best['of_model']:.1%})"] = (
            best["of_model"] >= OF_MODEL
        )
    return met


def write_photos(folder: Path, n_images: int) -> SampleIndex:
    """Writes shards of drawn photos, and their index beside them."""
    distinct = [drawn(_WIDTH, _HEIGHT, seed) for seed in range(min(_DISTINCT, n_images))]
    folder.mkdir(parents=True)
    images = [distinct[number % len(distinct)] for number in range(n_images)]
    write_tars(folder, images, per_shard=_PER_SHARD)
    index(sorted(folder.glob("*.tar")), IndexConfig(), out=folder, progress=Silent())
    return SampleIndex.open(folder)


def random_weights(network: str, folder: Path) -> Path:
    """Writes weights as timm draws them; returns the file."""
    import timm
    from safetensors.torch import save_file

    file = folder / f"{network}.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        save_file(timm.create_model(network, pretrained=False).state_dict(), file)
    return file


def measure_network(
    network: str,
    samples: SampleIndex,
    decode: str,
    device: torch.device,
    folder: Path,
    *,
    side: int = SIDE,
    least_seconds: float = 0.0,
) -> dict[str, Any]:
    """Runs each part of embedding over all images, several times in turn.

    Args:
        network: timm's name.
        samples: What to embed.
        decode: As `embed.decode`.
        device: Where the network runs.
        folder: Gets the weights.
        side: Of the images as the network takes them, pixels.
        least_seconds: All images are embedded again and again until the network needs this long.
    """
    cores = len(os.sched_getaffinity(0))
    config = EmbedConfig.model_validate(
        {
            "backbone": network,
            "checkpoint": str(random_weights(network, folder)),
            "image_size": side,
            "decode": decode,
        }
    )
    runner = Runner(config, device, cores)
    runner.read_from(samples)
    size = runner.batch_size
    batches = [np.arange(at, min(at + size, len(samples))) for at in range(0, len(samples), size)]
    resident = runner.images(batches[0]).pixels.to(device)
    images = runner.images

    def compute() -> None:
        for _ in batches:
            runner.engine(resident)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    passes = max(1, math.ceil(least_seconds / cost(compute).wall_s))
    parts: dict[str, Callable[[], object]] = {
        "read only": lambda: _on_threads(_each(images.read), batches, cores),
        "decode only": lambda: _on_threads(images, batches, cores),
        "model only": compute,
        "all of it": lambda: _exhaust(runner.run(batches * passes)),
    }
    done = {name: len(samples) for name in parts}
    done |= {"model only": len(resident) * len(batches), "all of it": passes * len(samples)}
    if device.type == "cuda":
        # Trying batch sizes took more than a run does.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    # The first round loads kernels and fills the page cache.
    costs = interleaved(parts, _REPEATS, warmups=1)
    rates = {name: done[name] / costs[name]["wall_s"][1] for name in parts}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "network": network,
        "decode": decode,
        "precision": runner.facts["precision"],
        "batch_size": size,
        "passes": passes,
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "of_model": round(rates["all of it"] / rates["model only"], 4),
        "peak_device_bytes": peak,
    }


def _each(read: Callable[[int], object]) -> Callable[[Rows], object]:
    return lambda rows: [read(row) for row in rows.tolist()]


def _on_threads(work: Callable[[Rows], object], batches: list[Rows], threads: int) -> None:
    _exhaust(in_order(work, batches, threads=threads, ahead=threads + 2, start=lambda: None))


def _exhaust(things: Iterable[object]) -> None:
    for _ in things:
        pass
