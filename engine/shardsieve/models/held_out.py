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
from shardsieve.models.probe import head_specs, train_heads
from shardsieve_kernels import Backend

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
    backend: Backend,
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
        backend: Which kernels run.
        advance: Called with the number of samples of each step.

    Returns:
        A function from positions in `rows` (B,) to (B, K) f32 logits.

    Raises:
        DataError: Training diverged.
    """
    n_folds = int(fold_R.max()) + 1
    fold_N = np.full(len(label_N), -1, np.int8)
    fold_N[rows] = fold_R
    specs = head_specs(config.model_copy(update={"folds": n_folds}))[1:]
    heads, _ = train_heads(
        features,
        label_N,
        specs,
        config,
        n_classes=n_classes,
        rows=rows,
        fold_N=fold_N,
        seed=seed,
        device=device,
        backend=backend,
        advance=advance,
    )
    single = [heads.head(fold) for fold in range(n_folds)]

    def logits(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        out = np.empty((len(positions), n_classes), np.float32)
        block = torch.from_numpy(features.take(rows[positions]))
        for fold in np.unique(fold_R[positions]).tolist():
            mine = np.flatnonzero(fold_R[positions] == fold)
            out[mine] = single[fold].logits(block[mine])[:, 0].cpu().numpy()
        return out

    return logits
