"""softmax_stats with Numba: rows in parallel, a few vector passes over each, float64 sums."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from shardsieve_kernels._vector import exp_nonpositive
from shardsieve_kernels.softmax_stats import SoftmaxStats

_F32_MAX = float(np.finfo(np.float32).max)
# Numba has no f16 on a CPU: such rows are widened a block at a time, not all at once.
_BLOCK_ROWS = 4096


def softmax_stats(logits_NK: np.ndarray, labels_N: np.ndarray, q: float) -> SoftmaxStats:
    """See `shardsieve_kernels.softmax_stats.softmax_stats`; checks nothing."""
    n_samples = len(logits_NK)
    labels_N = np.ascontiguousarray(labels_N, dtype=np.int32)
    # Columns in the order of SoftmaxStats, without pred: one output array, one row per field.
    fields_5N = np.empty((5, n_samples), dtype=np.float32)
    pred_N = np.empty(n_samples, dtype=np.int32)
    step = _BLOCK_ROWS if logits_NK.dtype == np.float16 else max(n_samples, 1)
    dtype = np.float32 if logits_NK.dtype == np.float16 else logits_NK.dtype
    for start in range(0, n_samples, step):
        rows = slice(start, start + step)
        block = np.ascontiguousarray(logits_NK[rows], dtype=dtype)
        _all_rows(block, labels_N, q, start, fields_5N, pred_N)
    loss_N, gce_N, margin_N, p_label_N, entropy_N = fields_5N
    return SoftmaxStats(loss_N, gce_N, margin_N, pred_N, p_label_N, entropy_N)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_rows(logits_BK, labels_N, q, start, fields_5N, pred_N):  # type: ignore[no-untyped-def]
    for b in prange(logits_BK.shape[0]):
        i = start + b
        pred_N[i] = _row(logits_BK[b], labels_N[i], q, fields_5N, i)


@njit(nogil=True, cache=True, error_model="numpy")
def _row(logits_K, label, q, fields_5N, i):  # type: ignore[no-untyped-def]
    n_classes = len(logits_K)
    if not _all_finite(logits_K):
        fields_5N[:, i] = np.nan
        return -1
    label_logit = np.float64(logits_K[label])
    rival = max(_largest(logits_K, 0, label), _largest(logits_K, label + 1, n_classes))
    top = max(rival, label_logit)
    pred = _first_equal(logits_K, top)
    # Sums without the top's own term, which is exactly 1.
    others_before, weighted_before = _sums(logits_K, 0, pred, top)
    others_after, weighted_after = _sums(logits_K, pred + 1, n_classes, top)
    others = others_before + others_after
    log_sum = math.log1p(others)
    loss = log_sum - (label_logit - top)
    if not loss <= _F32_MAX:
        fields_5N[:, i] = np.nan
        return -1
    p_label = math.exp(label_logit - top) / (1.0 + others)
    fields_5N[0, i] = loss
    fields_5N[1, i] = loss if q == 0.0 else -math.expm1(-q * loss) / q
    fields_5N[2, i] = p_label - math.exp(rival - top) / (1.0 + others)
    fields_5N[3, i] = p_label
    fields_5N[4, i] = log_sum - (weighted_before + weighted_after) / (1.0 + others)
    return pred


@njit(nogil=True, cache=True)
def _all_finite(logits_K):  # type: ignore[no-untyped-def]
    bad = 0
    for k in range(len(logits_K)):
        bad += not abs(logits_K[k]) < np.inf
    return bad == 0


# No NaN gets here; told so, LLVM takes the maximum of many numbers at a time.
@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _largest(logits_K, start, stop):  # type: ignore[no-untyped-def]
    if start == stop:
        return -np.inf
    largest = logits_K[start]
    for k in range(start + 1, stop):
        largest = logits_K[k] if logits_K[k] > largest else largest
    return np.float64(largest)


@njit(nogil=True, cache=True)
def _first_equal(logits_K, value):  # type: ignore[no-untyped-def]
    first = len(logits_K)
    for k in range(len(logits_K)):
        first = min(first, k if logits_K[k] == value else len(logits_K))
    return first


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _sums(logits_K, start, stop, top):  # type: ignore[no-untyped-def]
    others = 0.0
    weighted = 0.0
    for k in range(start, stop):
        shifted = np.float64(logits_K[k]) - top
        term = exp_nonpositive(shifted)
        others += term
        # exp is 0 long before -1000; the bound keeps 0 times minus infinity out of the sum.
        weighted += term * max(shifted, -1000.0)
    return others, weighted
