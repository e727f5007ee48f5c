"""Shards that are made in a moment: noisy squares of one colour per class."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200)]


@dataclass(frozen=True)
class TinyShards:
    paths: list[Path]
    given: dict[str, int]
    true: dict[str, int]

    @property
    def wrong(self) -> set[str]:
        return {key for key in self.given if self.given[key] != self.true[key]}

    @property
    def patterns(self) -> list[str]:
        return [str(path) for path in self.paths]


def jpeg(colour: tuple[int, int, int], rng: np.random.Generator, size: int = 40) -> bytes:
    pixels = np.clip(np.array(colour) + rng.normal(0, 25, (size, size, 3)), 0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes, mtime: int = 1_700_000_000) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), mtime, 0o640
    tar.addfile(member, io.BytesIO(content))


def write_shards(
    folder: Path,
    *,
    n_shards: int = 4,
    per_shard: int = 60,
    n_classes: int = 3,
    noise: float = 0.2,
    seed: int = 0,
) -> TinyShards:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths, given, true = [], {}, {}
    for shard in range(n_shards):
        path = folder / f"train-{shard:04d}.tar"
        with tarfile.open(path, "w") as tar:
            for position in range(per_shard):
                key = f"s{shard}-{position:03d}"
                label = int(rng.integers(n_classes))
                told = label
                if rng.random() < noise:
                    told = int((label + 1 + rng.integers(n_classes - 1)) % n_classes)
                add_member(tar, f"{key}.jpg", jpeg(COLOURS[label], rng), 1_700_000_000 + position)
                add_member(tar, f"{key}.cls", str(told).encode())
                add_member(tar, f"{key}.json", b'{"note": "kept as it is"}')
                given[key], true[key] = told, label
        paths.append(path)
    return TinyShards(paths, given, true)
