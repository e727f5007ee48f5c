"""probe_step with Numba: tiles of rows in parallel; a logit is read once, a gradient written once.

A tile's terms stay in the first cache between three passes: shifted by the row's largest logit,
exponentiated all together (short rows fill no vectors, a tile does), scaled to the gradient.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from shardsieve_kernels._arrays import narrow, widen
from shardsieve_kernels._vector import (
    exp_and_expm1_nonpositive,
    exp_nonpositive,
    exp_nonpositive_single,
    largest_and_finite,
    log1p_nonnegative,
)
from shardsieve_kernels.probe_step import Q_IS_ZERO

_F32_MAX = float(np.finfo(np.float32).max)
_TILE = 2048
_CHUNK = 32
# Numba has no f16 on a CPU, and NumPy no bf16: such rows are widened a block at a time.
_BLOCK_ELEMENTS = 131_072


def probe_step(
    logits_BHK: np.ndarray,
    labels_B: np.ndarray,
    q_H: np.ndarray,
    weights_BH: np.ndarray | None,
    out: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `shardsieve_kernels.probe_step.probe_step`; checks nothing, bf16 is its bits."""
    n_samples, n_heads, n_classes = logits_BHK.shape
    if out is None:
        out = np.empty(logits_BHK.shape, logits_BHK.dtype)
    labels_B = np.ascontiguousarray(labels_B, np.int32)
    q_H = np.where(q_H < Q_IS_ZERO, 0.0, q_H.astype(np.float64))
    if weights_BH is None:
        weights_BH = np.ones((n_samples, n_heads), np.float32)
    weights_BH = np.ascontiguousarray(weights_BH)
    loss_BH = np.empty((n_samples, n_heads), np.float32)
    if logits_BHK.dtype.itemsize > 2:
        _all_tiles(np.ascontiguousarray(logits_BHK), labels_B, q_H, weights_BH, loss_BH, out)
        return loss_BH, out
    step = max(1, _BLOCK_ELEMENTS // (n_heads * n_classes))
    for start in range(0, n_samples, step):
        rows = slice(start, start + step)
        block = np.ascontiguousarray(widen(logits_BHK[rows], np.float32))
        _all_tiles(block, labels_B[rows], q_H, weights_BH[rows], loss_BH[rows], block)
        narrow(block, out[rows])
    return loss_BH, out


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _all_tiles(logits_BHK, labels_B, q_H, weights_BH, loss_BH, out_BHK):  # type: ignore[no-untyped-def]
    n_samples, n_heads, n_classes = logits_BHK.shape
    logits, out = logits_BHK.reshape(-1), out_BHK.reshape(-1)
    n_rows = n_samples * n_heads
    tile = max(1, _TILE // n_classes)
    for t in prange((n_rows + tile - 1) // tile):
        first = t * tile
        stop = min(first + tile, n_rows)
        _one_tile(logits, labels_B, q_H, weights_BH, loss_BH, out, first, stop, n_classes)


@njit(nogil=True, cache=True, error_model="numpy")
def _one_tile(logits, labels_B, q_H, weights_BH, loss_BH, out, first, stop, n_classes):  # type: ignore[no-untyped-def]
    n_rows = stop - first
    n_heads = len(q_H)
    n_chunks = (n_rows * n_classes + _CHUNK - 1) // _CHUNK
    terms = np.empty(n_chunks * _CHUNK, logits.dtype)
    terms[n_rows * n_classes :] = 0.0
    # Per row: the label's logit below the largest, the sum of the terms, of all but the label's.
    below_R, sum_R, others_R = np.empty(n_rows), np.empty(n_rows), np.empty(n_rows)
    for r in range(n_rows):
        logits_K = logits[(first + r) * n_classes : (first + r + 1) * n_classes]
        terms_K = terms[r * n_classes : (r + 1) * n_classes]
        below_R[r] = _shift(logits_K, labels_B[(first + r) // n_heads], terms_K)
    _exp_all(terms, n_chunks)
    for r in range(n_rows):
        terms_K = terms[r * n_classes : (r + 1) * n_classes]
        label = labels_B[(first + r) // n_heads]
        term_label = terms_K[label]
        terms_K[label] = 0.0
        others_R[r] = _sum(terms_K)
        sum_R[r] = others_R[r] + term_label
    factor_R, gce_R = _losses(below_R, sum_R, others_R, q_H, first)
    for r in range(n_rows):
        sample, head = (first + r) // n_heads, (first + r) % n_heads
        loss_BH[sample, head] = gce_R[r]
        factor = factor_R[r] * weights_BH[sample, head]
        out_K = out[(first + r) * n_classes : (first + r + 1) * n_classes]
        # Also where a row has no answer: what is not finite does not reach the gradient.
        if gce_R[r] != gce_R[r] or factor == 0.0:
            for k in range(n_classes):
                out_K[k] = 0.0
            continue
        _scale(terms[r * n_classes : (r + 1) * n_classes], factor / sum_R[r], out_K)
        out_K[labels_B[sample]] = -factor * (others_R[r] / sum_R[r])


@njit(nogil=True, cache=True, error_model="numpy")
def _shift(logits_K, label, terms_K):  # type: ignore[no-untyped-def]
    top, usable = largest_and_finite(logits_K)
    for k in range(len(logits_K)):
        terms_K[k] = logits_K[k] - top
    # In float64: two f32 logits can be further apart than f32 reaches.
    return np.float64(logits_K[label]) - np.float64(top) if usable else np.nan


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _exp_all(terms, n_chunks):  # type: ignore[no-untyped-def]
    # Whole chunks alone: no element is left to instructions that round in another way.
    for chunk in range(n_chunks):
        terms_C = terms[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        for j in range(_CHUNK):
            if terms.itemsize == 4:
                terms_C[j] = exp_nonpositive_single(terms_C[j])
            else:
                terms_C[j] = exp_nonpositive(terms_C[j])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _sum(terms_K):  # type: ignore[no-untyped-def]
    total = terms_K[0]
    for k in range(1, len(terms_K)):
        total += terms_K[k]
    return np.float64(total)


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(terms_K, factor, out_K):  # type: ignore[no-untyped-def]
    factor = terms_K.dtype.type(factor)
    for k in range(len(out_K)):
        out_K[k] = terms_K[k] * factor


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _losses(below_R, sum_R, others_R, q_H, first):  # type: ignore[no-untyped-def]
    """Give p_y^q and the generalised cross entropy of each row, NaN where there is none."""
    factor_R, gce_R = np.empty_like(below_R), np.empty_like(below_R)
    for r in range(len(below_R)):
        q = q_H[(first + r) % len(q_H)]
        # The label's term is 1 if it is the largest; given back by log1p it does not round a small
        # loss away.
        rest = others_R[r] if below_R[r] == 0.0 else sum_R[r] - 1.0
        loss = log1p_nonnegative(rest) - below_R[r]
        power, power_minus_1 = exp_and_expm1_nonpositive(-q * loss)
        gce = loss if q == 0.0 else -power_minus_1 / q
        factor_R[r] = power
        gce_R[r] = gce if loss <= _F32_MAX else np.nan
    return factor_R, gce_R
