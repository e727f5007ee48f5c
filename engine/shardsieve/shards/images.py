"""Image bytes to upright RGB, or to a reason why not."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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


_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What `opened` and Pillow's decoders raise.
UNREADABLE = (ValueError, *_BOMBS, *_DAMAGED)


class _Filters:
    """Python's warning filters, which all threads share: the first one sets them for all."""

    lock = threading.Lock()
    users = 0
    before: warnings.catch_warnings[None]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silences Pillow about oddities and makes too many pixels an error.

    Threads that decode belong inside one of these: filters that each of them changes and restores
    would be left as another one found them.
    """
    with _Filters.lock:
        _Filters.users += 1
        if _Filters.users == 1:
            _Filters.before = warnings.catch_warnings()
            _Filters.before.__enter__()
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            # torchvision's: there is no other decoder for a GPU among the dependencies.
            warnings.filterwarnings("ignore", "The image decoding and", DeprecationWarning)
    try:
        yield
    finally:
        with _Filters.lock:
            _Filters.users -= 1
            if not _Filters.users:
                _Filters.before.__exit__(None, None, None)


def decode(data: bytes) -> Image.Image:
    """Decodes to RGB, upright: the EXIF orientation is applied.

    Raises:
        ValueError: The bytes are no image, are damaged, unpack to more pixels than Pillow holds
            safe, or are too thin a strip; the message says which.
    """
    try:
        with quiet_pillow(), opened(data) as image:
            image.load()
            return _to_rgb(upright(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(data)} bytes that are no known image format") from error
    except _BOMBS as error:
        raise ValueError(f"too many pixels: {error}") from error
    except _DAMAGED as error:
        raise ValueError(f"damaged: {error}") from error


def opened(data: bytes) -> Image.Image:
    """Reads an image's header; its pixels are not decoded yet.

    Raises:
        UNREADABLE: It is no image that could be used.
    """
    image = Image.open(io.BytesIO(data))
    if image.format == "EPS":
        # Pillow would hand the bytes to Ghostscript, which runs them.
        raise ValueError("PostScript is a program, not an image")
    if _too_thin(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels: too thin a strip")
    return image


def is_usual_size(width: int, height: int) -> bool:
    """Says whether an image of this size may be decoded without asking Pillow."""
    most = Image.MAX_IMAGE_PIXELS
    return (most is None or width * height <= most) and not _too_thin((width, height))


def _too_thin(size: tuple[int, int]) -> bool:
    return max(size) > _MOST_OBLONG * min(size)


def turned_by(image: Image.Image) -> Image.Transpose | None:
    """Returns what undoes the EXIF orientation, None where there is nothing to undo."""
    # Not ImageOps.exif_transpose: it writes the EXIF data anew and fails where they are damaged.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (ValueError, *_DAMAGED):
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def upright(image: Image.Image) -> Image.Image:
    """Returns the image with its EXIF orientation undone."""
    method = turned_by(image)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        pixels = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    return image.convert("RGB")
