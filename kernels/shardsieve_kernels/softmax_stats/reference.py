"""softmax_stats in NumPy, float64: the specification."""

from __future__ import annotations

import numpy as np

from shardsieve_kernels.softmax_stats import SoftmaxStats


def softmax_stats(logits_NK: np.ndarray, labels_N: np.ndarray, q: float) -> SoftmaxStats:
    """See `shardsieve_kernels.softmax_stats.softmax_stats`; checks nothing."""
    logits_NK = logits_NK.astype(np.float64)
    rows_N = np.arange(len(logits_NK))
    # f64 logits can be so far apart that their difference is infinite; such a row is marked below.
    with np.errstate(over="ignore"):
        usable_N = np.isfinite(logits_NK).all(axis=1)
        logits_NK[~usable_N] = 0.0
        pred_N = logits_NK.argmax(axis=1)
        shifted_NK = logits_NK - logits_NK[rows_N, pred_N][:, None]
        # The largest term is exactly 1. Left out of the sum and given back by log1p, it does not
        # round a small loss away.
        exp_NK = np.exp(shifted_NK)
        others_NK = exp_NK.copy()
        others_NK[rows_N, pred_N] = 0.0
        others_N = others_NK.sum(axis=1)
        log_sum_N = np.log1p(others_N)
        loss_N = log_sum_N - shifted_NK[rows_N, labels_N]
        usable_N &= loss_N <= np.finfo(np.float32).max

    p_NK = exp_NK / (1.0 + others_N)[:, None]
    p_label_N = p_NK[rows_N, labels_N]
    rivals_NK = p_NK.copy()
    rivals_NK[rows_N, labels_N] = 0.0
    margin_N = p_label_N - rivals_NK.max(axis=1)
    # exp is 0 long before -1000; the bound keeps 0 times minus infinity out of the sum.
    entropy_N = log_sum_N - (p_NK * np.maximum(shifted_NK, -1000.0)).sum(axis=1)
    gce_N = loss_N if q == 0.0 else -np.expm1(-q * loss_N) / q

    def single(values_N: np.ndarray) -> np.ndarray:
        return np.where(usable_N, values_N, np.nan).astype(np.float32)

    return SoftmaxStats(
        loss_N=single(loss_N),
        gce_N=single(gce_N),
        margin_N=single(margin_N),
        pred_N=np.where(usable_N, pred_N, -1).astype(np.int32),
        p_label_N=single(p_label_N),
        entropy_N=single(entropy_N),
    )
