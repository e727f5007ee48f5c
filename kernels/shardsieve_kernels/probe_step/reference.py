"""probe_step in NumPy, float64: the specification."""

from __future__ import annotations

import numpy as np

from shardsieve_kernels._arrays import narrow, widen
from shardsieve_kernels.probe_step import Q_IS_ZERO


def probe_step(
    logits_BHK: np.ndarray,
    labels_B: np.ndarray,
    q_H: np.ndarray,
    weights_BH: np.ndarray | None,
    out: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `shardsieve_kernels.probe_step.probe_step`; checks nothing, bf16 is its bits."""
    if out is None:
        out = np.empty(logits_BHK.shape, logits_BHK.dtype)
    z_BHK = widen(logits_BHK, np.float64)
    at_label = np.arange(len(z_BHK)), slice(None), labels_B
    usable_BH = np.isfinite(z_BHK).all(axis=2)
    z_BHK[~usable_BH] = 0.0
    # f64 logits can be so far apart that their difference is infinite; such a row is marked below.
    with np.errstate(over="ignore"):
        z_BHK -= z_BHK.max(axis=2, keepdims=True)
    z_label_BH = z_BHK[at_label]
    terms_BHK = np.exp(z_BHK)
    term_label_BH = terms_BHK[at_label]
    # The label's term is 1 if it is the largest. Left out of the sum and given back by log1p, it
    # does not round a small loss away.
    terms_BHK[at_label] = 0.0
    others_BH = terms_BHK.sum(axis=2)
    sum_BH = others_BH + term_label_BH
    loss_BH = np.where(z_label_BH == 0.0, np.log1p(others_BH), np.log(sum_BH) - z_label_BH)
    usable_BH &= loss_BH <= np.finfo(np.float32).max

    q_H = np.where(q_H < Q_IS_ZERO, 0.0, q_H.astype(np.float64))
    usable_loss_BH = np.where(usable_BH, loss_BH, 0.0)
    factor_BH = np.exp(-q_H * usable_loss_BH)
    if weights_BH is not None:
        factor_BH *= weights_BH
    gradient_BHK = terms_BHK * (factor_BH / sum_BH)[:, :, None]
    gradient_BHK[at_label] = -factor_BH * (others_BH / sum_BH)
    gradient_BHK[~usable_BH] = 0.0
    narrow(gradient_BHK, out)
    one_H = np.where(q_H == 0.0, 1.0, q_H)
    gce_BH = np.where(q_H == 0.0, usable_loss_BH, -np.expm1(-q_H * usable_loss_BH) / one_H)
    return np.where(usable_BH, gce_BH, np.nan).astype(np.float32), out
