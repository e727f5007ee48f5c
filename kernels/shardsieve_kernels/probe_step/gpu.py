"""probe_step with CUDA: each row read once and written once, by as many threads as it wants."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from shardsieve_kernels._cuda import cuda_function, is_cupy, lanes_and_items

_BLOCK = 256
_TYPE = {"uint16": "bfloat16"}


def probe_step(
    logits_BHK: Any, labels_B: Any, q_H: Any, weights_BH: Any, out: Any
) -> tuple[Any, Any]:
    """See `shardsieve_kernels.probe_step.probe_step`; checks nothing, bf16 is its bits."""
    if is_cupy(logits_BHK):
        with logits_BHK.device:
            return _step(logits_BHK, labels_B, q_H, weights_BH, out)
    # Logits in host memory: a copy of theirs takes the gradient, then goes back.
    logits_BHK = cp.array(logits_BHK, order="C")
    loss_BH, gradient_BHK = _step(logits_BHK, labels_B, q_H, weights_BH, logits_BHK)
    return loss_BH.get(), gradient_BHK.get(out=out)


def _step(logits_BHK: Any, labels_B: Any, q_H: Any, weights_BH: Any, out: Any) -> tuple[Any, Any]:
    logits_BHK = cp.ascontiguousarray(logits_BHK)
    n_samples, n_heads, n_classes = logits_BHK.shape
    gradient_BHK = cp.empty_like(logits_BHK) if out is None else out
    loss_BH = cp.empty((n_samples, n_heads), cp.float32)
    if n_samples == 0:
        return loss_BH, gradient_BHK
    accumulator = np.float64 if logits_BHK.dtype == np.float64 else np.float32
    weights = np.uint64(0)
    if weights_BH is not None:
        weights = cp.ascontiguousarray(cp.asarray(weights_BH))
    lanes, items = lanes_and_items(n_classes)
    name = _TYPE.get(logits_BHK.dtype.name, logits_BHK.dtype.name)
    pack = _columns_at_a_time(logits_BHK, gradient_BHK)
    kernel = cuda_function("probe_step", f"probe_step_{name}_{lanes}x{items}x{pack}")
    inputs = (
        logits_BHK,
        cp.ascontiguousarray(cp.asarray(labels_B), dtype=cp.int32),
        cp.ascontiguousarray(cp.asarray(q_H), dtype=accumulator),
        weights,
    )
    n_rows = n_samples * n_heads
    shape = np.int64(n_rows), np.int32(n_heads), np.int32(n_classes)
    grid = -(-n_rows // (_BLOCK // lanes))
    kernel((grid,), (_BLOCK,), (*inputs, *shape, loss_BH, gradient_BHK))
    return loss_BH, gradient_BHK


def _columns_at_a_time(logits_BHK: Any, gradient_BHK: Any) -> int:
    """Two columns of 16 bits travel as one word, if every row begins at one."""
    if logits_BHK.dtype.itemsize > 2 or logits_BHK.shape[2] % 2:
        return 1
    return 1 if (logits_BHK.data.ptr | gradient_BHK.data.ptr) % 4 else 2
