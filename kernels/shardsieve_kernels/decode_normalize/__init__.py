"""Decoded images to what a backbone takes: one size, normalised, in its number format.

Shapes: B images of one height and width in a batch, or P bytes of images of any size; output of
height H and width W.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from shardsieve_kernels._backend import Backend, implementation
from shardsieve_kernels._checks import check_array, check_at_least, check_choice

__all__ = ["Dtype", "Filter", "Layout", "PackedImages", "decode_normalize"]

Filter = Literal["bilinear", "bicubic"]
Dtype = Literal["float32", "float16", "bfloat16"]
Layout = Literal["NCHW", "NHWC"]


class PackedImages(NamedTuple):
    """Images of any sizes, one after another."""

    pixels_P: np.ndarray
    """(P,) u8: rows of pixels of red, green and blue, image after image without a gap."""
    shapes_B2: np.ndarray
    """(B, 2) i32 or i64: height and width of each image."""


class Images(NamedTuple):
    """What the implementations get: checked, and every image with its place and box."""

    pixels_P: Any
    """(P,) u8."""
    starts_B: np.ndarray
    """(B,) i64: the first byte of each image."""
    shapes_B2: np.ndarray
    """(B, 2) i64."""
    boxes_B4: np.ndarray
    """(B, 4) f64: top, left, bottom, right."""


class Target(NamedTuple):
    """What the implementations make of each pixel value v: v * scale_3 + shift_3."""

    height: int
    width: int
    filter: Filter
    scale_3: np.ndarray
    """(3,) f32."""
    shift_3: np.ndarray
    """(3,) f32."""
    dtype: Dtype
    layout: Layout

    def shape(self, n_images: int) -> tuple[int, int, int, int]:
        """Shape of the output."""
        if self.layout == "NCHW":
            return n_images, 3, self.height, self.width
        return n_images, self.height, self.width, 3


def decode_normalize(
    images: np.ndarray | PackedImages,
    *,
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    boxes_B4: np.ndarray | None = None,
    filter: Filter = "bicubic",
    dtype: Dtype = "float16",
    layout: Layout = "NCHW",
    backend: Backend,
) -> np.ndarray:
    """Resize, crop and normalise a batch of 8-bit RGB images.

    Resizing is antialiased, with the weights of Pillow's ``resize(size, filter, box=...)``, but
    neither rounded nor cut off at black and white between the axes. A box that is not scaled and
    lies on whole pixels is copied.

    Args:
        images: (B, h, w, 3) u8, or PackedImages.
        size: height and width of the output, each at least 1.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1], each above 0.
        boxes_B4: (B, 4) f64, or None for whole images: top, left, bottom and right edge, in pixels
            of the image, of what becomes the output. Pixels outside the box count where the
            filter reaches them.
        filter: interpolation kernel.
        dtype: of the output.
        layout: order of the output's axes.
        backend: from resolve_backend.

    Returns:
        (B, 3, H, W) or (B, H, W, 3) of dtype: (pixel / 255 - mean) / std. NumPy has no bfloat16:
        its bits come as uint16, for ``torch.from_numpy(...).view(torch.bfloat16)``. With backend
        "gpu" it is a CuPy array if the pixels are one.

    Raises:
        TypeError: an argument is not an array that the backend reads, or has another dtype.
        ValueError: a shape, a box or a number is out of range.
        BackendUnavailable: the backend is unknown or cannot run here.

    Guarantees:
        Same backend, same bits, whatever the other images are and however many threads run.
        Backends agree to ``testing.TOLERANCE["decode_normalize"]``, and to the last bit but one of
        dtype.
    """
    for name, length in zip(("height", "width"), size, strict=True):
        check_at_least(name, length, 1)
    check_choice("filter", filter, get_args(Filter))
    check_choice("dtype", dtype, get_args(Dtype))
    check_choice("layout", layout, get_args(Layout))
    mean_3, std_3 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    for name, values_3 in (("mean", mean_3), ("std", std_3)):
        if values_3.shape != (3,) or not np.isfinite(values_3).all():
            raise ValueError(f"{name} must be three finite numbers, found {values_3.tolist()}")
    if (std_3 <= 0).any():
        raise ValueError(
            f"std must be above 0, found {std_3.tolist()}; give it for pixels in [0, 1]"
        )
    target = Target(
        int(size[0]),
        int(size[1]),
        filter,
        (1 / (255 * std_3)).astype(np.float32),
        (-mean_3 / std_3).astype(np.float32),
        dtype,
        layout,
    )
    checked = _checked(images, boxes_B4, backend)
    run = implementation("decode_normalize", backend)
    return cast("np.ndarray", run(checked, target))


def _checked(
    images: np.ndarray | PackedImages, boxes_B4: np.ndarray | None, backend: str
) -> Images:
    if isinstance(images, PackedImages):
        pixels_P, shapes_B2 = images
        check_array("pixels_P", pixels_P, 1, ("uint8",), backend)
        check_array("shapes_B2", shapes_B2, 2, ("int32", "int64"), "reference")
        if shapes_B2.shape[1] != 2:
            raise ValueError(
                f"shapes_B2 must have two columns, height and width, found shape {shapes_B2.shape}"
            )
    else:
        check_array("images", images, 4, ("uint8",), backend)
        if images.shape[3] != 3:
            raise ValueError(
                f"images must have 3 channels last, found shape {images.shape}; convert them to RGB"
            )
        pixels_P = images.reshape(-1)
        shapes_B2 = np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
    if shapes_B2.size and int(shapes_B2.min()) < 1:
        row = int(np.argmin(shapes_B2.min(axis=1)))
        raise ValueError(
            f"image {row} has shape {shapes_B2[row].tolist()}; leave out images without pixels"
        )
    shapes_B2 = shapes_B2.astype(np.int64)
    ends_B = np.cumsum(3 * shapes_B2.prod(axis=1))
    n_bytes = int(ends_B[-1]) if len(ends_B) else 0
    if n_bytes != len(pixels_P):
        raise ValueError(
            f"shapes_B2 describes {n_bytes} bytes of pixels, pixels_P has {len(pixels_P)}; "
            "pack height * width * 3 bytes per image"
        )
    starts_B = np.concatenate((np.zeros(min(1, len(ends_B)), np.int64), ends_B[:-1]))
    return Images(pixels_P, starts_B, shapes_B2, _checked_boxes(boxes_B4, shapes_B2))


def _checked_boxes(boxes_B4: np.ndarray | None, shapes_B2: np.ndarray) -> np.ndarray:
    n_images = len(shapes_B2)
    if boxes_B4 is None:
        return np.hstack((np.zeros((n_images, 2)), shapes_B2.astype(np.float64)))
    check_array("boxes_B4", boxes_B4, 2, ("float64",), "reference")
    if boxes_B4.shape != (n_images, 4):
        raise ValueError(
            f"boxes_B4 must have shape {(n_images, 4)}, found {boxes_B4.shape}; "
            "give top, left, bottom and right for every image"
        )
    inside_B = (
        (boxes_B4[:, :2] >= 0).all(axis=1)
        & (boxes_B4[:, 2:] > boxes_B4[:, :2]).all(axis=1)
        & (boxes_B4[:, 2:] <= shapes_B2).all(axis=1)
    )
    if not inside_B.all():
        row = int(np.argmin(inside_B))
        raise ValueError(
            f"box {boxes_B4[row].tolist()} (top, left, bottom, right) of image {row} is empty or "
            f"not inside its {shapes_B2[row, 0]} x {shapes_B2[row, 1]} pixels; clip it"
        )
    return np.ascontiguousarray(boxes_B4)
