"""Image bytes to the pixels that a backbone takes, the fast way.

Shapes: H, W of the image; S side of the output in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional

from shardsieve.shards.images import (
    UNREADABLE,
    decode,
    is_usual_size,
    opened,
    quiet_pillow,
    turned_by,
)

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as it stays this many times larger than
# what it is resized to. Below 2 the result is visibly another one; above, large photos cost more.
MARGIN = 2
# Those whose antialiased resize torch has, with Pillow's weights.
_FILTERS = ("bilinear", "bicubic")
# torch rounds down: without it, a size that comes out a hair short would lose its last row.
_NUDGE = 1 + 1e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image becomes a square: its shorter edge is resized, then the middle is cut out.

    Attributes:
        edge: What the shorter edge is resized to, pixels, at least `side`.
        side: S.
        filter: `bilinear` or `bicubic`, antialiased.
    """

    edge: int
    side: int
    filter: str

    @classmethod
    def of(cls, side: int, crop_pct: float, crop_mode: str, filter: str) -> Fit | None:
        """Returns what timm's evaluation transform does, None where it does something else."""
        edge = math.floor(side / crop_pct)
        if crop_mode != "center" or filter not in _FILTERS or edge < side:
            return None
        return cls(edge, side, filter)


def exact_decoder(transform: Callable[[Image.Image], Any]) -> Decoder:
    """Returns what decodes with Pillow at full size and applies a transform to uint8 (3, S, S)."""

    def decoded(data: bytes) -> Pixels:
        return np.asarray(transform(decode(data)))

    return decoded


def fast_decoder(fit: Fit) -> Decoder:
    """Returns what decodes JPEGs with libjpeg-turbo near their final size and resizes with torch.

    Everything else, and every JPEG that libjpeg-turbo finds fault with, is decoded by Pillow; what
    both refuse is refused. Beside `exact_decoder`, of photos: an image that is decoded at full
    size differs by 2 levels of 255 at most; one that is decoded at a fraction of its size by 0.5 on
    average.
    """

    def decoded(data: bytes) -> Pixels:
        shrunken = _shrunken_jpeg(data, fit)
        if shrunken is None:
            pixels_HW3 = np.array(decode(data))
            return resized(pixels_HW3, pixels_HW3.shape[:2], fit)
        return resized(*shrunken, fit)

    return decoded


def resized(pixels_HW3: Pixels, extent: tuple[float, float], fit: Fit) -> Pixels:
    """Resizes and crops as timm does, with the weights of Pillow's resize.

    Args:
        pixels_HW3: (H, W, 3) u8.
        extent: Height and width that the image really has, in its pixels: a JPEG at half its size
            ends in the middle of its last pixel if its size was odd.
        fit: What comes out.

    Returns:
        (3, S, S) u8.
    """
    height, width = extent
    shorter = min(height, width)
    # As torchvision rounds: down.
    tall, wide = (int(fit.edge * length / shorter + 1e-9) for length in extent)
    batch = torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None]
    scales = (tall / height * _NUDGE, wide / width * _NUDGE)
    whole = functional.interpolate(batch, scale_factor=scales, mode=fit.filter, antialias=True)
    top, left = round((tall - fit.side) / 2.0), round((wide - fit.side) / 2.0)
    cut: Pixels = whole[0, :, top : top + fit.side, left : left + fit.side].numpy()
    return cut


def _shrunken_jpeg(data: bytes, fit: Fit) -> tuple[Pixels, tuple[float, float]] | None:
    """Decodes a JPEG upright at a fraction of its size; None leaves it to Pillow."""
    if not data.startswith(b"\xff\xd8"):
        return None
    header = _plain_header(data) or _header(data)
    if header is None:
        return None
    width, height, turn = header
    parts = 1
    while parts < 8 and min(width, height) >= 2 * parts * MARGIN * fit.edge:
        parts *= 2
    if turn is not None and (height % parts or width % parts):
        # A part of a pixel at the end would become one at the beginning.
        parts = 1
    tall, wide = -(-height // parts), -(-width // parts)
    least = (tall, wide) if parts > 1 else (0, 0)
    try:
        pixels_HW3 = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError:
        # A warning is an error to it: Pillow says whether there is a picture in the bytes.
        return None
    extent = (height / parts, width / parts)
    if turn is not None:
        pixels_HW3 = np.array(Image.fromarray(pixels_HW3).transpose(turn))
        extent = extent if pixels_HW3.shape[:2] == extent else extent[::-1]
    return pixels_HW3, extent


_Header = tuple[int, int, Image.Transpose | None]


def _plain_header(data: bytes) -> _Header | None:
    """Returns width and height of a JPEG that is neither turned nor unusual, None for others.

    Pillow's own way to the same costs a tenth of the decoding of a small photo.
    """
    if b"Exif" in data or b"tiff:Orientation" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "GRAY") or not is_usual_size(width, height):
        return None
    return width, height, None


def _header(data: bytes) -> _Header | None:
    """Returns width, height and what turns a JPEG upright; None leaves it to Pillow."""
    try:
        with quiet_pillow():
            image = opened(data)
            turn = turned_by(image)
    except UNREADABLE:
        return None
    # CMYK needs Pillow's conversion.
    return (*image.size, turn) if image.mode in ("RGB", "L") else None
