"""The probe's verdict on each sample: by the head that never saw it, where there is one.

Shapes: N samples, R rows, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.data.losses import LossTable
from shardsieve.errors import DataError
from shardsieve.models.probe.heads import Heads
from shardsieve.models.probe.source import FeatureSource, as_source, sequential
from shardsieve_kernels import Backend
from shardsieve_kernels.softmax_stats import softmax_stats

# Bounds the logits of a scoring pass: 64 MB of f32 each.
_LOGITS_AT_ONCE = 16_777_216


def draw_folds(
    rows: npt.NDArray[np.int64], n_samples: int, folds: int, seed: int
) -> npt.NDArray[np.int8]:
    """Deals the rows into folds of equal size, at random.

    Args:
        rows: (R,) rows that are trained on.
        n_samples: N.
        folds: How many, 0 for none.
        seed: Of the draw.

    Returns:
        (N,) i8 fold of each sample, -1 for none.

    Raises:
        DataError: There are more folds than rows.
    """
    fold_N = np.full(n_samples, -1, np.int8)
    if folds == 0:
        return fold_N
    if folds > len(rows):
        raise DataError(f"probe.folds = {folds} but only {len(rows)} samples are readable")
    shuffled = np.random.default_rng([seed, 1]).permutation(rows)
    fold_N[shuffled] = np.arange(len(rows)) % folds
    return fold_N


def score(
    features: FeatureSource | npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    label_N: npt.NDArray[np.int32],
    fold_N: npt.NDArray[np.int8],
    heads: Heads,
    device: torch.device,
    backend: Backend,
) -> LossTable:
    """Computes loss, margin and prediction of every sample that was trained on.

    Args:
        features: A store, or an array of (N, D) floats.
        rows: (R,) rows to score; the others stay without a score.
        label_N: (N,) class numbers.
        fold_N: (N,) fold of each sample, -1 for none: head 0 has seen everything, head 1 + f has
            not seen fold f and scores it.
        heads: The heads that `head_specs` describes, trained.
        device: Where the logits are computed.
        backend: Which kernels score.
    """
    losses = LossTable.empty(len(label_N))
    losses.fold_N[:] = fold_N
    source = as_source(features)
    single = [heads.head(head) for head in range(heads.bias_HK.shape[0])]
    block_rows = max(1, min(65_536, _LOGITS_AT_ONCE // heads.bias_HK.shape[1]))
    for part, block in sequential(source, rows, block_rows):
        piece = rows[part]
        which = fold_N[piece].astype(np.int64) + 1
        logits = torch.empty(len(piece), heads.bias_HK.shape[1], device=device)
        for head in np.unique(which):
            inside = np.flatnonzero(which == head)
            logits[inside] = single[head].logits(torch.from_numpy(block[inside]))[:, 0]
        stats = softmax_stats(logits.cpu().numpy(), label_N[piece], backend=backend)
        losses.loss_N[piece] = stats.loss_N
        losses.margin_N[piece] = stats.margin_N
        losses.pred_N[piece] = stats.pred_N
    return losses
