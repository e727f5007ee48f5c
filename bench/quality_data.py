"""Image sets of `bench quality` as cached features with true labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from bench import data as datasets
from shardsieve.config import load_config
from shardsieve.pipeline import run_stages
from shardsieve.progress import Progress
from shardsieve.run import Run

# Share of the images that becomes the test set where a folder has none.
_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Features with a known truth.

    Attributes:
        name: For tables.
        features_ND: f32, of the images to clean.
        label_N: True labels.
        human: Further label sets of the same images, by name.
        test_features_ND: Of images with clean labels that no method sees.
        test_label_N: Their labels.
        n_classes: K.
    """

    name: str
    features_ND: npt.NDArray[np.float32]
    label_N: npt.NDArray[np.int64]
    human: Mapping[str, npt.NDArray[np.int64]]
    test_features_ND: npt.NDArray[np.float32]
    test_label_N: npt.NDArray[np.int64]
    n_classes: int


def digits(out: Path, progress: Progress) -> ImageSet:
    """scikit-learn's digits: what a fresh machine always has."""
    shards = datasets.digits(out / "digits-shards", noise=0.0)
    patterns = [*shards.train, *shards.validation]
    settings = {"embed.image_size": 96, "index.classes": str(shards.classes)}
    return _embedded("digits", patterns, settings, out / "digits-run", None, progress)


def folder(path: Path, out: Path, progress: Progress, *, image_size: int = 128) -> ImageSet:
    """A folder with train-*.tar (or any *.tar), and maybe test-*.tar and truth.parquet.

    truth.parquet has `key`, `clean_label` and any number of `NAME_label`: sets of human labels.
    Without it the labels of the shards are taken for the truth.
    """
    name = path.resolve().name
    settings: dict[str, Any] = {"embed.image_size": image_size}
    if (path / "classes.json").is_file():
        settings["index.classes"] = str(path / "classes.json")
    truth = path / "truth.parquet"
    return _embedded(
        name,
        [str(path / "*.tar")],
        settings,
        out / f"{name}-run",
        truth if truth.is_file() else None,
        progress,
    )


def subset(images: ImageSet, n_samples: int) -> ImageSet:
    """The first `n_samples` after a fixed shuffle, to bound the time."""
    if len(images.label_N) <= n_samples:
        return images
    rows = np.sort(np.random.default_rng(0).permutation(len(images.label_N))[:n_samples])
    return ImageSet(
        f"{images.name} ({n_samples:,})",
        images.features_ND[rows],
        images.label_N[rows],
        {name: labels[rows] for name, labels in images.human.items()},
        images.test_features_ND,
        images.test_label_N,
        images.n_classes,
    )


def _embedded(
    name: str,
    patterns: list[str],
    settings: dict[str, Any],
    out: Path,
    truth: Path | None,
    progress: Progress,
) -> ImageSet:
    config = load_config(values=settings)
    run_stages(["index"], out, config, patterns, progress=progress)
    run_stages(["embed"], out, config, progress=progress)
    run = Run(out)
    samples, features = run.index, run.features
    usable = np.flatnonzero(samples.readable_N & (features.reason_N == 0))
    all_ND = features.take(usable).astype(np.float32)
    label_N = samples.label_N[usable].astype(np.int64)
    shard_N = samples.numbers("shard")[usable]
    held_out = [
        number
        for number, ref in enumerate(samples.shards)
        if ref.path.name.startswith(("test-", "validation"))
    ]
    test_N = np.isin(shard_N, held_out)
    if not held_out:
        test_N = np.random.default_rng(0).random(len(usable)) < _TEST_SHARE
    human: dict[str, npt.NDArray[np.int64]] = {}
    if truth is not None:
        keys = np.asarray(samples.keys_N.to_pylist())[usable]
        true_N, human = _read_truth(truth, keys, ~test_N)
        label_N[~test_N] = true_N
    return ImageSet(
        name,
        all_ND[~test_N],
        label_N[~test_N],
        human,
        all_ND[test_N],
        label_N[test_N],
        samples.n_classes,
    )


def _read_truth(
    truth: Path, keys_N: npt.NDArray[np.str_], wanted_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.int64]]]:
    table = pq.read_table(truth)
    position = {key: row for row, key in enumerate(table.column("key").to_pylist())}
    rows = [position[key] for key in keys_N[wanted_N]]
    columns = {
        name.removesuffix("_label"): table.column(name).to_numpy()[rows].astype(np.int64)
        for name in table.column_names
        if name.endswith("_label")
    }
    return columns.pop("clean"), columns
