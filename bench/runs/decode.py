"""JPEG to the pixels of a backbone: the decoders that could be had, beside Pillow and timm."""

from __future__ import annotations

import io
import math
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bench.jpegs import drawn, enlarged, photos
from shardsieve.shards.images import decode, upright
from shardsieve.shards.pixels import Fit, exact_decoder, fast_decoder, resized

_SIDE, _CROP = 128, 0.875
_FIT = Fit(math.floor(_SIDE / _CROP), _SIDE, "bicubic")
_EDGE = _FIT.edge
_LARGE = 1500

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]


def measure(*, quick: bool) -> dict[str, Any]:
    """Decodes each set of JPEGs with every decoder, on one core, in turn."""
    repeats = 1 if quick else 5
    source, small = photos(8 if quick else 150)
    sets = {
        "32 px": [enlarged(drawn(32, 32, n), 32) for n in range(8 if quick else 200)],
        f"{source}, 300 px": small,
        f"{source}, 500 px": [enlarged(data, 500) for data in small[: 4 if quick else 60]],
        f"{source}, 1500 px": [enlarged(data, 1500) for data in small[: 2 if quick else 20]],
        f"{source}, 3000 px": [enlarged(data, 3000) for data in small[: 1 if quick else 6]],
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = {name: _one_set(images, repeats) for name, images in sets.items()}
    finally:
        torch.set_num_threads(before)
    large = [name for name in sets if int(name.split()[-2]) >= _LARGE]
    ratio = min(measured[name]["shardsieve fast"]["times_pillow"] for name in large)
    return {"repeats": repeats, "side": _SIDE, "sets": measured, "ratio_large": ratio}


def describe(result: dict[str, Any]) -> str:
    """A table per set of JPEGs."""
    lines = [f"images a CPU second to {result['side']} px; difference from Pillow in levels of 255"]
    for name, decoders in result["sets"].items():
        lines += ["", f"{name:32} {'images/s':>9} {'Pillow':>8} {'mean':>7} {'most':>5}"]
        lines += [
            f"  {decoder:30} {row['per_cpu_s']:9,.0f} {row['times_pillow']:7.2f}x "
            f"{row['mean_difference']:7.3f} {row['max_difference']:5d}"
            for decoder, row in decoders.items()
        ]
    lines += ["", f"large JPEGs: {result['ratio_large']:.2f} times Pillow (goal: 2)"]
    return "\n".join(lines)


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    return {f"2 times Pillow on large JPEGs ({result['ratio_large']})": result["ratio_large"] >= 2}


def _one_set(images: list[bytes], repeats: int) -> dict[str, dict[str, Any]]:
    decoders = _decoders()
    reference = decoders["Pillow, full size"]
    expected = [reference(data).astype(int) for data in images]
    rows: dict[str, dict[str, Any]] = {}
    for name, decoder in decoders.items():
        differences = [
            np.abs(decoder(data).astype(int) - want)
            for data, want in zip(images, expected, strict=True)
        ]
        rows[name] = {
            "mean_difference": round(float(np.mean([d.mean() for d in differences])), 4),
            "max_difference": int(max(d.max() for d in differences)),
        }
    _check(rows["shardsieve fast"])
    spent: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(repeats):
        for name, decoder in decoders.items():
            start = time.process_time()
            for data in images:
                decoder(data)
            spent[name].append(time.process_time() - start)
    seconds = {name: statistics.median(several) for name, several in spent.items()}
    for name, row in rows.items():
        row["per_cpu_s"] = round(len(images) / seconds[name], 1)
        row["times_pillow"] = round(seconds["Pillow, full size"] / seconds[name], 2)
    return rows


def _check(row: dict[str, Any]) -> None:
    assert row["mean_difference"] < 1, f"another picture than Pillow's: {row}"


def _decoders() -> dict[str, Decoder]:
    from timm.data import create_transform

    transform = create_transform(
        (3, _SIDE, _SIDE), interpolation="bicubic", crop_pct=_CROP, use_prefetcher=True
    )

    def draft(data: bytes) -> Pixels:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (2 * _EDGE, 2 * _EDGE))
        return np.asarray(transform(upright(image).convert("RGB")))

    found: dict[str, Decoder] = {
        "Pillow, full size": exact_decoder(transform),
        "Pillow, draft": draft,
        "Pillow, torch's resize": lambda data: _with_torch(np.array(decode(data))),
        "torchvision": _torchvision,
        "simplejpeg, full size": _simplejpeg,
        "shardsieve fast": fast_decoder(_FIT),
    }
    if find_spec("cv2") is not None:
        found["OpenCV, reduced"] = _opencv
    return found


def _with_torch(pixels_HW3: Pixels) -> Pixels:
    return resized(pixels_HW3, (pixels_HW3.shape[0], pixels_HW3.shape[1]), _FIT)


def _simplejpeg(data: bytes) -> Pixels:
    import simplejpeg

    return _with_torch(simplejpeg.decode_jpeg(data))


def _torchvision(data: bytes) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        # Deprecated since 0.29, and compared all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    return _with_torch(image.permute(1, 2, 0).numpy())


def _opencv(data: bytes) -> Pixels:
    import cv2

    cv2.setNumThreads(1)
    shorter = min(Image.open(io.BytesIO(data)).size)
    flag = cv2.IMREAD_COLOR
    for parts, reduced in (
        (2, cv2.IMREAD_REDUCED_COLOR_2),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (8, cv2.IMREAD_REDUCED_COLOR_8),
    ):
        if shorter >= 2 * parts * _EDGE:
            flag = reduced
    pixels_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), flag)[..., ::-1]
    height, width = pixels_HW3.shape[:2]
    scale = _EDGE / min(height, width)
    size = (int(width * scale + 1e-9), int(height * scale + 1e-9))
    small = cv2.resize(np.ascontiguousarray(pixels_HW3), size, interpolation=cv2.INTER_AREA)
    top, left = round((size[1] - _SIDE) / 2), round((size[0] - _SIDE) / 2)
    cut = small[top : top + _SIDE, left : left + _SIDE]
    return np.ascontiguousarray(cut.transpose(2, 0, 1))
