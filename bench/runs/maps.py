"""What fine-tuning makes of the features: figures, and maps of them before and after it.

The TURN paper tunes on what was kept and leaves open what becomes of the features. Here the same
images are laid out four times: as the frozen network sees them, as the probe's logits do, and as
the network does after fine-tuning on all the noisy labels and on those that `best` kept.

Shapes: N samples, P points, D features.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from bench.figures import STYLE
from bench.runs.tune import METHODS, Images
from shardsieve.page.feature_map import layout
from shardsieve.rundir import RunDir

KIND, RATE = "asymmetric", 0.4
_NEIGHBOURS = 10
_POINTS = 1_200


def measure(*, quick: bool, data: Path | None = None) -> dict[str, Any]:
    """Tunes twice, and lays out the images under each set of features.

    Args:
        quick: Fewer images.
        data: Folder with train-*.tar, test-*.tar and truth.parquet; default: scikit-learn's digits.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        images = Images(out, data, quick)
        given_N, planted = images.plant(KIND, RATE, 0)
        wrong_N = given_N != images.true_N
        models = {}
        for number, name in enumerate(("all, CE", "best")):
            run = images.run(planted | METHODS[name])
            models[name] = shutil.copy(run.model, out / f"model-{number}.safetensors")
        frozen_ND = run.features.take(np.arange(len(given_N))).astype(np.float32)
        head = load_file(RunDir(run.path).folder("probe") / "head.safetensors")
        stages = {
            "frozen features": frozen_ND,
            "logits of the probe": frozen_ND @ head["weight"].T + head["bias"],
            "tuned on all labels": images.features_by(Path(models["all, CE"])),
            "tuned on the kept": images.features_by(Path(models["best"])),
        }
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(given_N), min(_POINTS, len(given_N)), replace=False))
    return {
        "repeats": 1,
        "data": images.name,
        "images": len(given_N),
        "image_size": images.settings["embed.image_size"],
        "noise": f"{KIND} {RATE:g}",
        "wrong": float(wrong_N.mean()),
        "neighbours": _NEIGHBOURS,
        "stages": {
            name: {
                **_figures(features_ND, images.true_N, given_N),
                "x_P2": np.round(layout(features_ND[rows], 0), 1).tolist(),
            }
            for name, features_ND in stages.items()
        },
        "true_P": images.true_N[rows].tolist(),
        "wrong_P": wrong_N[rows].tolist(),
        "seconds": round(time.monotonic() - start, 1),
    }


def _figures(
    features_ND: npt.NDArray[np.float32],
    true_N: npt.NDArray[np.int64],
    given_N: npt.NDArray[np.int64],
) -> dict[str, float]:
    """What neighbours in the features, not on the map, have in common."""
    finder = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, metric="cosine").fit(features_ND)
    near_NJ = finder.kneighbors(features_ND, return_distance=False)
    # Of two that are the same, either may come first: a sample is no neighbour of its own.
    other_NJ = near_NJ != np.arange(len(true_N))[:, None]
    same_N = (true_N[near_NJ] == true_N[:, None]).mean(1, where=other_NJ)
    agree_N = (given_N[near_NJ] == given_N[:, None]).mean(1, where=other_NJ)
    return {
        "same_class": round(float(same_N.mean()), 4),
        "auroc_wrong": round(float(roc_auc_score(given_N != true_N, -agree_N)), 4),
    }


def describe(result: dict[str, Any]) -> str:
    """What the neighbours of a sample tell, by features."""
    lines = [
        f"{result['data']}: {result['images']:,} images at {result['image_size']} px, "
        f"{result['noise']} ({result['wrong']:.1%} wrong); the {result['neighbours']} nearest:",
        "                        of the same true class   AUROC of finding a wrong label by them",
    ]
    lines += [
        f"  {name:22}{told['same_class']:22.1%}{told['auroc_wrong']:30.3f}"
        for name, told in result["stages"].items()
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], file: Path) -> None:
    """Draws a map for each set of features; wrong labels are crosses."""
    true_P, wrong_P = np.array(result["true_P"]), np.array(result["wrong_P"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.2))
        panels = figure.subplots(1, len(result["stages"]))
        for panel, (name, told) in zip(panels, result["stages"].items(), strict=True):
            x_P2 = np.array(told["x_P2"])
            for marker, size, shown_P in (("o", 4, ~wrong_P), ("x", 9, wrong_P)):
                panel.scatter(
                    *x_P2[shown_P].T,
                    s=size,
                    c=true_P[shown_P],
                    cmap="tab10",
                    vmin=0,
                    vmax=max(9, true_P.max()),
                    marker=marker,
                    linewidths=0.6,
                )
            panel.set_title(f"{name}\n{told['same_class']:.0%} of neighbours alike")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        figure.savefig(file, bbox_inches="tight", dpi=130, metadata={"Software": None})
