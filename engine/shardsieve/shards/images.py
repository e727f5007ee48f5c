"""Image bytes to the square uint8 pixels that a backbone takes."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import Dataset

from shardsieve.errors import ShardError

Transform = Callable[[Image.Image], Any]
Pixels = npt.NDArray[np.uint8]
# (row, pixels as C H W, None) or (row, None, why it could not be decoded).
Decoded = tuple[int, Pixels | None, str | None]

# Pillow's plugins raise all of these on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)
# Resized to a backbone's height, a thinner strip than this would fill the memory.
_MOST_OBLONG = 200
# What undoes the EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes) -> Image.Image:
    """Decodes to RGB, upright: the EXIF orientation is applied.

    Raises:
        ValueError: The bytes are no image, are damaged, unpack to more pixels than Pillow holds
            safe, or are too thin a strip; the message says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.format == "EPS":
                    # Pillow would hand the bytes to Ghostscript, which runs them.
                    raise ValueError("PostScript is a program, not an image")
                if max(image.size) > _MOST_OBLONG * min(image.size):
                    raise ValueError(f"{image.width} x {image.height} pixels: too thin a strip")
                image.load()
                return _to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(data)} bytes that are no known image format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too many pixels: {error}") from error
    except _DAMAGED as error:
        raise ValueError(f"damaged: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF data anew and fails where they are damaged.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (ValueError, *_DAMAGED):
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        pixels = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    return image.convert("RGB")


class ShardFiles:
    """Open shards by path; every process opens its own on first use."""

    def __init__(self, paths: list[Path], most_open: int = 64) -> None:
        self._paths = paths
        self._most_open = most_open
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_most_open": self._most_open, "_open": {}}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Reads a byte range.

        Raises:
            ShardError: The shard is gone, or shorter than when it was indexed.
        """
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise ShardError(
                f"{self._paths[shard]} at byte {offset:,}: {error.strerror}. "
                "It was there when it was indexed; bring it back and run again"
            ) from error
        if len(data) < size:
            raise ShardError(
                f"{self._paths[shard]} at byte {offset:,}: {size:,} bytes expected, "
                f"{len(data):,} found. The shard changed since it was indexed; run again"
            )
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            while len(self._open) >= self._most_open:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._open[shard]

    def close(self) -> None:
        """Closes what is open."""
        while self._open:
            os.close(self._open.popitem()[1])


class ImageRows(Dataset[Decoded]):
    """Decoded images by row of the index, read from the original shards.

    A bad image is a result, not an error: (row, None, reason).
    """

    def __init__(
        self,
        paths: list[Path],
        shard_N: npt.NDArray[np.int32],
        offset_N: npt.NDArray[np.int64],
        size_N: npt.NDArray[np.int64],
        transform: Transform,
        seed: int | None = None,
    ) -> None:
        """Takes the columns of the index and a timm transform that ends in uint8 C H W.

        Args:
            paths: Shards by number.
            shard_N: Shard of each row.
            offset_N: First byte of each image.
            size_N: Bytes of each image.
            transform: PIL image to uint8 (3, H, W).
            seed: Makes a random transform depend on (seed, row) only, not on which worker runs it.
        """
        self._files = ShardFiles(paths)
        self._shard_N, self._offset_N, self._size_N = shard_N, offset_N, size_N
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._shard_N)

    def __getitem__(self, row: int) -> Decoded:
        data = self._files.read(
            int(self._shard_N[row]), int(self._offset_N[row]), int(self._size_N[row])
        )
        try:
            image = decode(data)
        except ValueError as error:
            return row, None, str(error)
        if self._seed is None:
            return row, np.asarray(self._transform(image)), None
        state = np.random.SeedSequence([self._seed, row]).generate_state(2, np.uint64)
        with torch.random.fork_rng(devices=[]):
            before = random.getstate()
            torch.manual_seed(int(state[0]))
            random.seed(int(state[1]))
            pixels = np.asarray(self._transform(image))
            random.setstate(before)
        return row, pixels, None


def collate(batch: list[Decoded]) -> tuple[torch.Tensor, npt.NDArray[np.int64], list[Decoded]]:
    """Stacks what could be decoded.

    Returns:
        (B, 3, H, W) u8, the B rows, and the ones that could not be decoded.
    """
    good = [(row, pixels) for row, pixels, _ in batch if pixels is not None]
    bad = [item for item in batch if item[1] is None]
    rows = np.array([row for row, _ in good], np.int64)
    if not good:
        return torch.empty(0, dtype=torch.uint8), rows, bad
    return torch.from_numpy(np.stack([pixels for _, pixels in good])), rows, bad
