"""JPEGs to decode: real photos where a folder with shards is given, else drawn ones."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Folder with photos*.tar; nothing is measured on them without it.
PHOTOS = "SHARDSIEVE_BENCH_PHOTOS"


def photos(count: int, seed: int = 0) -> tuple[str, list[bytes]]:
    """Returns what they are, and JPEGs of about 300 x 240 pixels."""
    folder = os.environ.get(PHOTOS)
    if folder:
        found: list[bytes] = []
        for path in sorted(Path(folder).glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith((".jpg", ".jpeg")) and len(found) < count:
                        file = tar.extractfile(member)
                        assert file is not None
                        found.append(file.read())
        if not found:
            raise SystemExit(f"{PHOTOS}={folder}: no JPEG in *.tar there")
        return "photos", found
    return "drawn", [drawn(300, 240, seed + number) for number in range(count)]


def drawn(width: int, height: int, seed: int) -> bytes:
    """Draws shapes with texture and grain; about as many bytes a pixel as a photo has."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.zeros((height, width, 3))
    for _ in range(12):
        angle, frequency, phase = rng.uniform(0, 6.3), rng.uniform(2, 40), rng.uniform(0, 6.3)
        wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) * 6.3 + phase)
        image += wave[..., None] * rng.normal(0, 14, 3)
    for _ in range(8):
        cx, cy, radius = rng.uniform(0, 1, 3) * (1, 0.8, 0.2)
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] += rng.normal(0, 40, 3)
    image += 128 + rng.normal(0, 6, (height, width, 1))
    return jpeg(Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)))


def enlarged(data: bytes, longer: int) -> bytes:
    """Returns a JPEG again with another longer edge."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = longer / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return jpeg(image.resize(size, Image.Resampling.BICUBIC))


def jpeg(image: Image.Image) -> bytes:
    """Encodes at the quality of most cameras."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def write_tars(folder: Path, images: list[bytes], per_shard: int, classes: int = 10) -> None:
    """Writes images with labels as shards."""
    for shard, start in enumerate(range(0, len(images), per_shard)):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
            for number, data in enumerate(images[start : start + per_shard], start):
                for name, content in (("jpg", data), ("cls", str(number % classes).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
