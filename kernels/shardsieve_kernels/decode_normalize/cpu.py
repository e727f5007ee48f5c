"""decode_normalize with Numba: one image per thread, 16 rows of the output at a time.

Both axes are sums of vectors that lie in one piece: rows of the image, and then columns of 16 rows,
which have been transposed.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from shardsieve_kernels.decode_normalize import Images, Target

# Images that are resized in f32 before they are rounded to a smaller format.
_BLOCK = 64
# Rows of the output that are made together: f32 numbers of one or two vector registers.
_LANES = 16
# Pixels that are added to these in one step.
_TAPS = 4


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
            round_all = _to_bfloat16 if target.dtype == "bfloat16" else _to_float16
            bits = out[block].view(np.uint16).reshape(-1)
            round_all(values.reshape(-1), values.view(np.uint32).reshape(-1), bits)
    return out


# Nearest, ties to even. NumPy takes ten times as long.
@njit(parallel=True, nogil=True, cache=True)
def _to_bfloat16(values: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    for i in prange(len(out)):
        rounding = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        out[i] = (bits[i] + rounding) >> np.uint32(16)


@njit(parallel=True, nogil=True, cache=True)
def _to_float16(values: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    for i in prange(len(out)):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        # 15 in place of 127 as the bias of the exponent; 13 digits fewer.
        rounding = np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))
        half = (size - np.uint32(0x38000000) + rounding) >> np.uint32(13)
        if size < np.uint32(0x38800000):
            # Below 2^-14 the format has fixed steps of 2^-24.
            half = np.uint32(np.rint(abs(values[i]) * np.float32(16777216.0)))
        if size >= np.uint32(0x47800000):
            half = np.uint32(0x7C00)
        out[i] = half | ((bits[i] >> np.uint32(16)) & np.uint32(0x8000))


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
        first_W *= 3
        used_hP = image_hw3[:, first_W[0] : first_W[-1] + 3 * weights_WT.shape[1]]
        first_W -= first_W[0]
        sums_WL = np.empty((n_columns, _LANES), np.float32)
        rows_LP = np.zeros((_LANES, used_hP.shape[1]), np.float32)
        # Weights of 0 fill the last step, whose pixels may lie beyond the last one.
        n_taps = weights_WT.shape[1]
        steps_WT = np.zeros((n_columns, -(-n_taps // _TAPS) * _TAPS), np.float32)
        steps_WT[:, :n_taps] = weights_WT
        columns_PL = np.zeros((rows_LP.shape[1] + 3 * _TAPS, _LANES), np.float32)
        for y in range(0, n_rows, _LANES):
            block = slice(y, min(y + _LANES, n_rows))
            _add_rows(used_hP, first_H[block], weights_HT[block], rows_LP)
            columns_PL[: rows_LP.shape[1]] = rows_LP.T
            out = out_BHWC[i, block]
            _add_columns(columns_PL, first_W, steps_WT, scale_3, shift_3, sums_WL, out)


@njit(nogil=True, cache=True)
def _taps(
    low: float, high: float, n_in: int, n_out: int, bicubic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and weights of each output pixel; all of the pixels lie in the image."""
    step = (high - low) / n_out
    stretch = max(1.0, step)
    support = (2.0 if bicubic else 1.0) * stretch
    first_O = np.empty(n_out, np.int64)
    n_taps = min(math.ceil(2 * support) + 2, n_in)
    weights_OT = np.zeros((n_out, n_taps), np.float32)
    for o in range(n_out):
        center = low + (o + 0.5) * step
        first = int(max(center - support + 0.5, 0.0))
        last = min(int(center + support + 0.5), n_in)
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


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add_rows(
    used_hP: np.ndarray, first_L: np.ndarray, weights_LT: np.ndarray, rows_LP: np.ndarray
) -> None:
    for lane in range(len(first_L)):
        sums_P = rows_LP[lane]
        sums_P[:] = 0
        for t in range(weights_LT.shape[1]):
            weight = weights_LT[lane, t]
            row_P = used_hP[first_L[lane] + t]
            for i in range(len(sums_P)):
                sums_P[i] += weight * np.float32(row_P[i])


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add_columns(
    columns_PL: np.ndarray,
    first_W: np.ndarray,
    weights_WT: np.ndarray,
    scale_3: np.ndarray,
    shift_3: np.ndarray,
    sums_WL: np.ndarray,
    out_HWC: np.ndarray,
) -> None:
    for c in range(3):
        for x in range(len(first_W)):
            for lane in range(_LANES):
                sums_WL[x, lane] = 0
            for t in range(0, weights_WT.shape[1], _TAPS):
                w0, w1 = weights_WT[x, t], weights_WT[x, t + 1]
                w2, w3 = weights_WT[x, t + 2], weights_WT[x, t + 3]
                p = first_W[x] + 3 * t + c
                for lane in range(_LANES):
                    sums_WL[x, lane] += (
                        w0 * columns_PL[p, lane]
                        + w1 * columns_PL[p + 3, lane]
                        + w2 * columns_PL[p + 6, lane]
                        + w3 * columns_PL[p + 9, lane]
                    )
        for lane in range(len(out_HWC)):
            for x in range(len(first_W)):
                # Bicubic weights overshoot beside edges.
                value = min(max(sums_WL[x, lane], np.float32(0)), np.float32(255))
                out_HWC[lane, x, c] = value * scale_3[c] + shift_3[c]
