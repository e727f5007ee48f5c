"""The part of `bench.runs.tune` that needs a GPU: the speed of fine-tuning, and the whole line.

Both are the product through its settings; the figures are those that a run keeps of itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench import data as datasets
from bench.embed_gpu import SIDE, random_weights, write_photos
from bench.scoring import score_selection
from shardsieve.config import load_config
from shardsieve.pipeline import run_stages
from shardsieve.progress import console_progress

NETWORK = "vit_base_patch16_224"
IMAGES_PER_S, WAITING = 3_400, 0.03
# Of an epoch: the first batch is waited for, and that must not count for much.
_IMAGES = 65_536
# Of training: a forward pass, and twice as much backward.
_PASSES = 3
_LINE = ["index", "embed", "probe", "select", "tune"]


def measure_gpu(*, quick: bool, data: Path | None = None) -> dict[str, Any]:
    """Fine-tunes ViT-B/16 in bf16, then runs the whole line on photos with a known truth.

    Args:
        quick: Few images.
        data: Folder with train-*.tar, test-*.tar, truth.parquet, such as cifar10n; None leaves the
            whole line out.
    """
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        folder = Path(name)
        speed = measure_speed(NETWORK, folder, n_images=1_024 if quick else _IMAGES)
        speed["mfu"] = round(
            speed["flops_per_image"] * speed["images_per_s"] / product_flops_per_s(), 4
        )
        line = None if data is None else measure_line(data, folder / "line", quick=quick)
    return {"repeats": 1, "speed": speed, "line": line}


def goals_gpu(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    speed = result["speed"]
    rate, waiting = speed["images_per_s"], speed["waiting_share"]
    met = {
        f"{NETWORK} in {speed['precision']}: {IMAGES_PER_S:,} images/s ({rate:,.0f}, "
        f"{speed['mfu']:.0%} of the rate of a large product)": rate >= IMAGES_PER_S,
        f"waits for images under {WAITING:.0%} of the time ({waiting:.1%})": waiting < WAITING,
    }
    if result["line"] is not None:
        selection, last = result["line"]["selection"], result["line"]["accuracy"][-1]
        # Nothing is wrong where nothing is kept, and nothing is gained.
        before, after = selection["noise_before"], selection.get("noise_after", 1.0)
        told = f"wrong labels {before:.1%} -> {after:.1%}, test accuracy {last:.3f}"
        met[f"{told}: fewer wrong ones kept"] = after < before
    return met


def measure_speed(
    network: str, folder: Path, *, n_images: int, side: int = SIDE, **settings: Any
) -> dict[str, Any]:
    """Fine-tunes on every image of made-up shards for two epochs; the figures are the second's.

    Args:
        network: timm's name.
        folder: Gets weights, shards and the run.
        n_images: In an epoch.
        side: Of an image, pixels.
        settings: Beside those, with two underscores for the dot.
    """
    folder.mkdir(exist_ok=True)
    shards = folder / "shards"
    write_photos(shards, n_images)
    values: dict[str, Any] = {
        "embed.backbone": network,
        "embed.checkpoint": str(random_weights(network, folder)),
        "embed.image_size": side,
        "probe.epochs": 1,
        "select.recipe": "turn",
        "select.floor": 10**9,
        "tune.balance": "all",
        "tune.reselect": "never",
        "tune.epochs": 2,
        "tune.batch_size": 128,
    }
    config = load_config(values=values | {k.replace("__", "."): v for k, v in settings.items()})
    run = run_stages(
        _LINE, folder / "run", config, [str(shards / "*.tar")], progress=console_progress()
    )
    facts = run.manifest.stages["tune"].facts
    last = facts["metrics"][-1]
    return {
        "network": network,
        "precision": facts["precision"],
        "batch_size": config.tune.batch_size,
        "images": last["drawn"],
        "images_per_s": round(last["drawn"] / last["seconds"], 1),
        "waiting_share": round(last["waiting_seconds"] / last["seconds"], 4),
        "flops_per_image": _PASSES * forward_flops(network, side),
    }


def forward_flops(network: str, side: int) -> int:
    """Counts the floating-point operations of one image's forward pass."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model(network, pretrained=False).eval()
    if side != model.pretrained_cfg["input_size"][1] and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(side, side))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops())


def product_flops_per_s(size: int = 8192) -> float:
    """Measures the rate of a large product in bf16 on the current GPU."""
    from bench.gpu import median_ms

    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = left @ right
    return 2 * size**3 / (median_ms(lambda: torch.mm(left, right, out=out)) / 1e3)


def measure_line(data: Path, out: Path, *, quick: bool, side: int = SIDE) -> dict[str, Any]:
    """Cleans and fine-tunes on a folder's shards, and asks the truth.

    Args:
        data: Folder with train-*.tar, test-*.tar, truth.parquet, and maybe classes.json.
        out: Run directory.
        quick: Two shards, one epoch.
        side: Of an image, pixels.
    """
    shards = datasets.from_folder(data)
    values: dict[str, Any] = {
        "embed.image_size": side,
        "tune.epochs": 1 if quick else 4,
        "tune.validation": shards.validation,
    }
    if shards.classes is not None:
        values["index.classes"] = str(shards.classes)
    train = sorted(str(path) for path in data.glob("train-*.tar"))
    sources = train[:2] if quick else train
    run = run_stages(_LINE, out, load_config(values=values), sources, progress=console_progress())
    stages = run.manifest.stages
    return {
        "data": data.resolve().name,
        "samples": len(run.index),
        "seconds": {name: round(stages[name].seconds, 2) for name in _LINE},
        "selection": score_selection(run.scores, data / "truth.parquet"),
        "accuracy": [row["validation_accuracy"] for row in stages["tune"].facts["metrics"]],
    }
