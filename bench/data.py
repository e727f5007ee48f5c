"""Image sets with known truth, as shards."""

from __future__ import annotations

import gzip
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
from shardsieve.errors import DataError

_UBYTE = tuple(
    f"{part}-{what}-ubyte.gz"
    for part in ("train", "t10k")
    for what in ("images-idx3", "labels-idx1")
)
# Where the Debian package puts it.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


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
    images = (images * 255 / 16).astype(np.uint8)
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


def fashion_mnist(
    folder: Path, source: Path = FASHION_MNIST, *, train: int = 20_000, test: int = 4_000
) -> NoisyShards:
    """Writes a part of Fashion-MNIST (arXiv 1708.07747), with its clean labels, as shards.

    Args:
        folder: Where they go.
        source: Folder with the four files `*-ubyte.gz` as they are published.
        train: Images of the training set, chosen at random.
        test: Images of the test set.

    Raises:
        DataError: The files are not there.
    """
    if missing := [name for name in _UBYTE if not (source / name).is_file()]:
        raise DataError(
            f"{source}: no {', no '.join(missing)}; install the Debian package "
            "dataset-fashion-mnist, or name the folder with Fashion-MNIST's files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    truth = folder / "truth.parquet"
    if not truth.is_file():
        _write_part(folder, source, "t10k", "test", test)
        keys, label_N = _write_part(folder, source, "train", "train", train)
        (folder / "classes.json").write_text(json.dumps(_CLOTHES))
        pq.write_table(pa.table({"key": keys, "clean_label": label_N}), truth)
    return from_folder(folder)


def _write_part(
    folder: Path, source: Path, part: str, name: str, count: int
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Writes shards of 1,000 images and returns the keys and labels of all."""
    image_NHW, label_N = _read_ubyte(source, part)
    rows = np.sort(np.random.default_rng(0).permutation(len(label_N))[:count])
    keys = [f"{name}-{row:05d}" for row in rows.tolist()]
    for shard, start in enumerate(range(0, len(rows), 1_000)):
        span = slice(start, start + 1_000)
        file = folder / f"{name}-{shard:04d}.tar"
        _write(file, keys[span], image_NHW[rows[span]], label_N[rows[span]])
    return keys, label_N[rows]


def _read_ubyte(source: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Returns images (N, 28, 28) and labels (N,) of files in the IDX format of MNIST."""
    images, labels = (
        gzip.decompress((source / f"{part}-{what}-ubyte.gz").read_bytes())
        for what in ("images-idx3", "labels-idx1")
    )
    label_N = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    return np.frombuffer(images, np.uint8, offset=16).reshape(len(label_N), 28, 28), label_N


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
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
) -> None:
    with tarfile.open(path, "w") as tar:
        for key, image, label in zip(keys, images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            for extension, content in (("png", png.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
