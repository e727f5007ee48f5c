"""decode_normalize with Numba: one image per thread, first along rows, then along columns."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from shardsieve_kernels.decode_normalize import Images, Target
from shardsieve_kernels.decode_normalize.reference import rounded

# Images that are resized in f32 before they are rounded to a smaller format.
_BLOCK = 64


def decode_normalize(images: Images, target: Target) -> np.ndarray:
    """See `shardsieve_kernels.decode_normalize.decode_normalize`; checks nothing."""
    n_images = len(images.starts_B)
    dtype = np.uint16 if target.dtype == "bfloat16" else np.dtype(target.dtype)
    out = np.empty(target.shape(n_images), dtype)
    pixels_P = np.ascontiguousarray(images.pixels_P)
    for start in range(0, n_images, _BLOCK):
        block = slice(start, min(start + _BLOCK, n_images))
        in_place = target.dtype == "float32"
        values = out[block] if in_place else np.empty(out[block].shape, np.float32)
        values_BHWC = values if target.layout == "NHWC" else values.transpose(0, 2, 3, 1)
        places = images.starts_B[block], images.shapes_B2[block], images.boxes_B4[block]
        bicubic = target.filter == "bicubic"
        _resize_all(pixels_P, *places, bicubic, target.scale_3, target.shift_3, values_BHWC)
        if not in_place:
            out[block] = rounded(values, target.dtype)
    return out


@njit(parallel=True, nogil=True, cache=True)
def _resize_all(
    pixels_P: np.ndarray,
    starts_B: np.ndarray,
    shapes_B2: np.ndarray,
    boxes_B4: np.ndarray,
    bicubic: bool,
    scale_3: np.ndarray,
    shift_3: np.ndarray,
    out_BHWC: np.ndarray,
) -> None:
    for i in prange(len(starts_B)):
        height, width = shapes_B2[i]
        image_hw3 = pixels_P[starts_B[i] : starts_B[i] + 3 * height * width].reshape(
            (height, 3 * width)
        )
        top, left, bottom, right = boxes_B4[i]
        n_rows, n_columns = out_BHWC.shape[1], out_BHWC.shape[2]
        first_W, weights_WT = _taps(left, right, width, n_columns, bicubic)
        first_H, weights_HT = _taps(top, bottom, height, n_rows, bicubic)
        used = image_hw3[first_H[0] : first_H[-1] + weights_HT.shape[1]]
        narrow = _along_rows(used, first_W, weights_WT)
        first_H -= first_H[0]
        _along_columns(narrow, first_H, weights_HT, scale_3, shift_3, out_BHWC[i])


@njit(nogil=True, cache=True)
def _taps(
    low: float, high: float, n_in: int, n_out: int, bicubic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and weights of each output pixel; weights beyond the last pixel are 0."""
    step = (high - low) / n_out
    stretch = max(1.0, step)
    support = (2.0 if bicubic else 1.0) * stretch
    first_O = np.empty(n_out, np.int64)
    n_taps = min(int(math.ceil(2 * support)) + 2, n_in)
    weights_OT = np.zeros((n_out, n_taps), np.float32)
    for o in range(n_out):
        center = low + (o + 0.5) * step
        first = int(max(center - support + 0.5, 0.0))
        last = min(int(center + support + 0.5), n_in)
        # The taps of the last pixels start earlier, so that all of them lie in the image.
        first_O[o] = min(first, n_in - n_taps)
        total = 0.0
        for k in range(first, last):
            total += _kernel(abs(k - center + 0.5) / stretch, bicubic)
        for k in range(first, last):
            weight = _kernel(abs(k - center + 0.5) / stretch, bicubic) / total
            weights_OT[o, k - first_O[o]] = np.float32(weight)
    return first_O, weights_OT


@njit(nogil=True, cache=True)
def _kernel(x: float, bicubic: bool) -> float:
    if not bicubic:
        return max(1.0 - x, 0.0)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@njit(nogil=True, cache=True)
def _along_rows(image_hw3: np.ndarray, first_W: np.ndarray, weights_WT: np.ndarray) -> np.ndarray:
    n_columns, n_taps = weights_WT.shape
    narrow_hW3 = np.empty((len(image_hw3), 3 * n_columns), np.float32)
    for y in range(len(image_hw3)):
        row = image_hw3[y]
        for x in range(n_columns):
            red = green = blue = np.float32(0)
            at = 3 * first_W[x]
            for t in range(n_taps):
                weight = weights_WT[x, t]
                red += weight * np.float32(row[at])
                green += weight * np.float32(row[at + 1])
                blue += weight * np.float32(row[at + 2])
                at += 3
            narrow_hW3[y, 3 * x] = red
            narrow_hW3[y, 3 * x + 1] = green
            narrow_hW3[y, 3 * x + 2] = blue
    return narrow_hW3


@njit(nogil=True, cache=True)
def _along_columns(
    narrow_hW3: np.ndarray,
    first_H: np.ndarray,
    weights_HT: np.ndarray,
    scale_3: np.ndarray,
    shift_3: np.ndarray,
    out_HWC: np.ndarray,
) -> None:
    sums_W3 = np.empty(narrow_hW3.shape[1], np.float32)
    for y in range(len(first_H)):
        sums_W3[:] = 0
        for t in range(weights_HT.shape[1]):
            weight = weights_HT[y, t]
            row = narrow_hW3[first_H[y] + t]
            for i in range(len(sums_W3)):
                sums_W3[i] += weight * row[i]
        for x in range(out_HWC.shape[1]):
            for c in range(3):
                # Bicubic weights overshoot beside edges.
                value = min(max(sums_W3[3 * x + c], np.float32(0)), np.float32(255))
                out_HWC[y, x, c] = value * scale_3[c] + shift_3[c]
