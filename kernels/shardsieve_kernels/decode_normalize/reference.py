"""decode_normalize with NumPy in float64: each axis a matrix of weights."""

from __future__ import annotations

import numpy as np

from shardsieve_kernels.decode_normalize import Dtype, Filter, Images, Target


def decode_normalize(images: Images, target: Target) -> np.ndarray:
    """See `shardsieve_kernels.decode_normalize.decode_normalize`; checks nothing."""
    n_images = len(images.starts_B)
    normalised_BHWC = np.empty((n_images, target.height, target.width, 3))
    for i, (height, width) in enumerate(images.shapes_B2):
        top, left, bottom, right = images.boxes_B4[i]
        start = images.starts_B[i]
        image = images.pixels_P[start : start + 3 * int(height) * int(width)]
        image_hwC = image.reshape(height, width, 3).astype(np.float64)
        rows_Hh = weight_matrix(top, bottom, height, target.height, target.filter)
        columns_Ww = weight_matrix(left, right, width, target.width, target.filter)
        narrow_hWC = np.einsum("Ww,hwC->hWC", columns_Ww, image_hwC)
        # Bicubic weights overshoot beside edges.
        small_HWC = np.clip(np.einsum("Hh,hWC->HWC", rows_Hh, narrow_hWC), 0, 255)
        normalised_BHWC[i] = small_HWC * target.scale_3 + target.shift_3
    return laid_out(normalised_BHWC, target)


def weight_matrix(low: float, high: float, n_in: int, n_out: int, filter: Filter) -> np.ndarray:
    """Weigh the pixels of one axis for each pixel of the output.

    Args:
        low: first edge of the box.
        high: last edge of the box.
        n_in: pixels of the image along the axis.
        n_out: pixels of the output along the axis.
        filter: interpolation kernel, widened to the spacing of the output's pixels.

    Returns:
        (n_out, n_in) f64, rows that add to 1.
    """
    step = (high - low) / n_out
    stretch = max(1.0, step)
    centers_O = low + (np.arange(n_out) + 0.5) * step
    support = {"bilinear": 1.0, "bicubic": 2.0}[filter] * stretch
    first_O = np.trunc(np.maximum(centers_O - support + 0.5, 0))
    last_O = np.minimum(np.trunc(centers_O + support + 0.5), n_in)
    pixels_I = np.arange(n_in)
    distance_OI = np.abs(pixels_I - centers_O[:, None] + 0.5) / stretch
    kernel = {"bilinear": _triangle, "bicubic": _cubic}[filter]
    reached_OI = (pixels_I >= first_O[:, None]) & (pixels_I < last_O[:, None])
    weights_OI = np.where(reached_OI, kernel(distance_OI), 0.0)
    total_O1: np.ndarray = weights_OI.sum(axis=1, keepdims=True)
    return weights_OI / total_O1


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    # Keys' kernel with a = -0.5.
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def laid_out(normalised_BHWC: np.ndarray, target: Target) -> np.ndarray:
    """Bring a batch into the order and number format that was asked for."""
    ordered = normalised_BHWC
    if target.layout == "NCHW":
        ordered = normalised_BHWC.transpose(0, 3, 1, 2)
    return rounded(np.ascontiguousarray(ordered, np.float32), target.dtype)


def rounded(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Round f32 to nearest, ties to even; bfloat16 comes as its bits in u16."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(dtype, copy=False)
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
