"""Logits of linear probes that never saw the sample they speak of.

Shapes: R usable samples, B of them, F folds, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore
from shardsieve.errors import DataError
from shardsieve.models.linear import train_heads

HeldOutLogits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


def train_held_out(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    fold_R: npt.NDArray[np.int8],
    config: ProbeConfig,
    *,
    seed: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> HeldOutLogits:
    """Trains a probe per fold that leaves the fold out, all in one pass over the features an epoch.

    Args:
        features: Cached features.
        rows: (R,) rows with features and a label.
        label_N: (N,) labels of all samples.
        n_classes: K.
        fold_R: (R,) fold of each of `rows`.
        config: Loss, epochs, step sizes; its `folds` play no part.
        seed: Of the shuffles.
        device: Where the arithmetic runs.
        advance: Called with the number of samples of each step.

    Returns:
        A function from positions in `rows` (B,) to (B, K) f32 logits.

    Raises:
        DataError: Training diverged.
    """
    n_folds = int(fold_R.max()) + 1
    held_out_FN = np.zeros((n_folds, len(label_N)), bool)
    for fold in range(n_folds):
        held_out_FN[fold, rows[fold_R == fold]] = True
    heads, curve = train_heads(
        features,
        rows,
        label_N,
        n_classes,
        held_out_FN,
        config,
        seed=seed,
        device=device,
        advance=advance,
    )
    if not (np.isfinite(curve).all() and torch.isfinite(heads.weight_HDK).all()):
        raise DataError(
            f"the training of the held-out probes diverged (loss per epoch: {curve[:3]} ...); "
            f"lower probe.lr ({config.lr})"
        )

    def logits(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        out = np.empty((len(positions), n_classes), np.float32)
        block = torch.from_numpy(features.take(rows[positions])).to(device).float()
        scaled = heads.scaling.apply(block)
        for fold in np.unique(fold_R[positions]).tolist():
            mine = np.flatnonzero(fold_R[positions] == fold)
            chosen = scaled[torch.from_numpy(mine).to(device)]
            out[mine] = (chosen @ heads.weight_HDK[fold] + heads.bias_HK[fold]).cpu().numpy()
        return out

    return logits
