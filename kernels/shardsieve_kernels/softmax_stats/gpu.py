"""softmax_stats with CUDA: each row read once, by as many threads as its length wants."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from shardsieve_kernels._cuda import cuda_function, is_cupy, lanes_and_items, like_inputs
from shardsieve_kernels.softmax_stats import SoftmaxStats

_BLOCK = 256
# Rows that come from host memory are copied a block at a time: 256 MB of the device.
_BLOCK_BYTES = 268_435_456


def softmax_stats(logits_NK: Any, labels_N: Any, q: float) -> SoftmaxStats:
    """See `shardsieve_kernels.softmax_stats.softmax_stats`; checks nothing."""
    n_samples, n_classes = logits_NK.shape
    fields_5N = cp.empty((5, n_samples), cp.float32)
    pred_N = cp.empty(n_samples, cp.int32)
    step = max(1, n_samples)
    if not is_cupy(logits_NK):
        step = max(1, _BLOCK_BYTES // (n_classes * logits_NK.dtype.itemsize))
    for start in range(0, n_samples, step):
        rows = slice(start, min(start + step, n_samples))
        whole = step >= n_samples
        n_rows = rows.stop - rows.start
        fields_5B = fields_5N if whole else cp.empty((5, n_rows), cp.float32)
        _launch(cp.asarray(logits_NK[rows]), cp.asarray(labels_N[rows]), q, fields_5B, pred_N[rows])
        if not whole:
            fields_5N[:, rows] = fields_5B
    loss_N, gce_N, margin_N, p_label_N, entropy_N = fields_5N
    columns = (loss_N, gce_N, margin_N, pred_N, p_label_N, entropy_N)
    return SoftmaxStats(*like_inputs((logits_NK, labels_N), columns))


def _launch(logits_BK: Any, labels_B: Any, q: float, fields_5B: Any, pred_B: Any) -> None:
    logits_BK = cp.ascontiguousarray(logits_BK)
    labels_B = cp.ascontiguousarray(labels_B, dtype=cp.int32)
    n_rows, n_classes = logits_BK.shape
    lanes, items = lanes_and_items(n_classes)
    kernel = cuda_function("softmax_stats", f"softmax_stats_{logits_BK.dtype}_{lanes}x{items}")
    accumulator = np.float64 if logits_BK.dtype == np.float64 else np.float32
    grid = -(-n_rows // (_BLOCK // lanes))
    arguments = (logits_BK, labels_B, np.int64(n_rows), np.int32(n_classes), accumulator(q))
    kernel((grid,), (_BLOCK,), (*arguments, fields_5B, pred_B))
