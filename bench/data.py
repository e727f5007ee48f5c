"""Image sets with known truth, as shards."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.noise import symmetric


@dataclass(frozen=True, slots=True)
class NoisyShards:
    """Shards with labels that may be wrong, and what is known about them.

    Attributes:
        name: For people.
        train: Patterns of the shards to clean.
        validation: Patterns of clean shards, empty if there are none.
        classes: File with class names.
        truth: Parquet table with `key` and `clean_label`, None if nobody knows.
        settings: What the demo sets for them, by dotted name.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    classes: Path | None
    truth: Path | None
    settings: dict[str, Any]


def digits(folder: Path, *, noise: float = 0.4, seed: int = 0) -> NoisyShards:
    """Writes scikit-learn's 1,797 scanned digits as shards: 1,497 with noise, 300 clean."""
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    classes, truth = folder / "classes.json", folder / "truth.parquet"
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images, labels = data.images[order], data.target[order].astype(np.int64)
    train = len(order) - 300
    given = symmetric(labels[:train], noise, 10, seed)
    keys = [f"digit-{number:04d}" for number in order]
    # Written once: newer files would look like changed shards to a run that goes on.
    if not truth.is_file():
        for shard, start in enumerate(range(0, train, 250)):
            span = slice(start, min(start + 250, train))
            _write(folder / f"train-{shard:04d}.tar", keys[span], images[span], given[span])
        _write(folder / "validation.tar", keys[train:], images[train:], labels[train:])
        classes.write_text(json.dumps([str(digit) for digit in range(10)]))
        pq.write_table(pa.table({"key": keys[:train], "clean_label": labels[:train]}), truth)
    return NoisyShards(
        f"scikit-learn digits, {noise:.0%} symmetric noise",
        (str(folder / "train-*.tar"),),
        (str(folder / "validation.tar"),),
        classes,
        truth,
        # Digits have no mirror image, and their strokes reach the border.
        {"embed.image_size": 96, "tune.flip": 0.0, "tune.crop_scale": [0.8, 1.0]},
    )


def from_folder(folder: Path) -> NoisyShards:
    """Describes a folder with train-*.tar, and maybe test-*.tar, classes.json, truth.parquet."""
    train = str(folder / "train-*.tar") if any(folder.glob("train-*.tar")) else str(folder)
    test = folder.glob("test-*.tar")
    classes, truth = folder / "classes.json", folder / "truth.parquet"
    return NoisyShards(
        str(folder),
        (train,),
        tuple(str(path) for path in sorted(test)),
        classes if classes.is_file() else None,
        truth if truth.is_file() else None,
        {"embed.image_size": 128},
    )


def _write(
    path: Path,
    keys: list[str],
    images: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
) -> None:
    with tarfile.open(path, "w") as tar:
        for key, image, label in zip(keys, images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(png, "PNG")
            for extension, content in (("png", png.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
