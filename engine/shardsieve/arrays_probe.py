"""The linear probe on features that lie in memory; the one place that knows the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import ProbeConfig
from shardsieve.errors import DataError
from shardsieve.models.linear import train_heads
from shardsieve_kernels import Backend
from shardsieve_kernels.softmax_stats import softmax_stats

# Logits in memory at a time, over all heads.
_LOGITS_AT_ONCE = 16_000_000
# Multiplications in a step, about a tenth of a millisecond of one core.
_WORTH_A_THREAD = 2_000_000


class ArrayFeatures:
    """An (N, D) array in the place of a `FeatureStore`."""

    def __init__(self, features_ND: npt.NDArray[np.floating]) -> None:
        self._features_ND = features_ND
        self.dim = features_ND.shape[1]

    def __len__(self) -> int:
        return len(self._features_ND)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Gathers rows, as (B, D) f32."""
        return self._features_ND[rows].astype(np.float32)

    def blocks(
        self, rows: npt.NDArray[np.int64], size: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Yields (row numbers, features) for consecutive pieces of `rows`."""
        for start in range(0, len(rows), size):
            piece = rows[start : start + size]
            yield piece, self.take(piece)


@contextmanager
def _few_threads(multiplications: int) -> Iterator[None]:
    """Keeps small steps to one thread: on a busy machine waking another takes longer than a step.

    Numba sets the number of threads of the OpenMP library that torch shares, whatever torch or the
    environment said.
    """
    before = torch.get_num_threads()
    if multiplications < _WORTH_A_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def probe_arrays(
    features_ND: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    config: ProbeConfig,
    *,
    seed: int,
    device: torch.device,
    backend: Backend,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Trains the probe and scores every sample, as the stage `probe` does.

    Args:
        features_ND: (N, D) finite.
        label_N: (N,) in [0, K).
        n_classes: K.
        config: Loss, epochs, scaling, folds.
        seed: Of shuffles and folds.
        device: Where the arithmetic runs.
        backend: Which kernels score.

    Returns:
        (N,) f32 cross entropy in nats, and (N,) i32 predictions; with folds, those of the probe
        that never saw the sample.

    Raises:
        DataError: Training diverged.
    """
    features: Any = ArrayFeatures(features_ND)
    n_samples = len(features_ND)
    rows = np.arange(n_samples, dtype=np.int64)
    fold_N = np.full(n_samples, -1, np.int8)
    if config.folds:
        shuffled = np.random.default_rng([seed, 1]).permutation(rows)
        fold_N[shuffled] = rows % config.folds
    held_out_HN = np.stack([fold_N == fold for fold in (-2, *range(config.folds))])
    with _few_threads(config.batch_size * features.dim * n_classes * len(held_out_HN)):
        heads, curve = train_heads(
            features,
            rows,
            label_N,
            n_classes,
            held_out_HN,
            config,
            seed=seed,
            device=device,
            advance=lambda amount: None,
        )
    if not (np.isfinite(curve).all() and torch.isfinite(heads.weight_HDK).all()):
        raise DataError(
            f"the probe's training diverged; scale the features or lower lr {config.lr}"
        )
    loss_N = np.empty(n_samples, np.float32)
    pred_N = np.empty(n_samples, np.int32)
    size = max(1, min(65_536, _LOGITS_AT_ONCE // (len(held_out_HN) * n_classes)))
    for piece, block in features.blocks(rows, size):
        logits_HBK = heads.logits(torch.from_numpy(block).to(device)).cpu().numpy()
        # Head 0 has seen everything; head 1 + f has not seen fold f.
        logits_BK = logits_HBK[fold_N[piece] + 1, np.arange(len(piece))]
        stats = softmax_stats(logits_BK, label_N[piece], backend=backend)
        loss_N[piece] = stats.loss_N
        pred_N[piece] = stats.pred_N
    return loss_N, pred_N
