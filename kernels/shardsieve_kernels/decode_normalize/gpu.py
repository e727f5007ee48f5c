"""decode_normalize with CUDA: one launch for images of all sizes."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from shardsieve_kernels._cuda import cuda_function, like_inputs
from shardsieve_kernels.decode_normalize import Images, Target

_BLOCK = (32, 8)
# CUDA's limit to the third side of a grid.
_MOST_IMAGES = 65_535


def decode_normalize(images: Images, target: Target) -> Any:
    """See `shardsieve_kernels.decode_normalize.decode_normalize`; checks nothing."""
    n_images = len(images.starts_B)
    dtype = cp.uint16 if target.dtype == "bfloat16" else cp.dtype(target.dtype)
    out = cp.empty(target.shape(n_images), dtype)
    pixels_P = cp.ascontiguousarray(cp.asarray(images.pixels_P))
    kernel = cuda_function("decode_normalize", f"decode_normalize_{target.dtype}_{target.filter}")
    settings = (
        np.int32(target.height),
        np.int32(target.width),
        np.int32(target.layout == "NHWC"),
        *target.scale_3,
        *target.shift_3,
    )
    for start in range(0, n_images, _MOST_IMAGES):
        block = slice(start, min(start + _MOST_IMAGES, n_images))
        columns = (images.starts_B[block], images.shapes_B2[block], images.boxes_B4[block])
        places = [cp.asarray(np.ascontiguousarray(column)) for column in columns]
        grid = (
            -(-target.width // _BLOCK[0]),
            -(-target.height // _BLOCK[1]),
            block.stop - block.start,
        )
        kernel(grid, _BLOCK, (pixels_P, *places, *settings, out[block]))
    return like_inputs((images.pixels_P,), (out,))[0]
