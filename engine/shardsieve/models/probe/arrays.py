"""The probe on features that lie in memory, from training to the verdict on each sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.losses import LossTable
from shardsieve.models.probe.score import draw_folds, score
from shardsieve.models.probe.train import head_specs, train_heads
from shardsieve_kernels import Backend

# Multiplications in a step, about a tenth of a millisecond of one core.
_WORTH_A_THREAD = 2_000_000


def probe_arrays(
    features_ND: npt.NDArray[Any],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    config: ProbeConfig,
    *,
    seed: int,
    device: torch.device,
    backend: Backend,
) -> LossTable:
    """Trains the probe and scores every sample, as the stage `probe` does.

    Args:
        features_ND: (N, D) finite numbers.
        label_N: (N,) in [0, K).
        n_classes: K.
        config: Solver, loss, epochs, scaling, folds.
        seed: Of shuffles and folds.
        device: Where the arithmetic runs.
        backend: Which kernels run.

    Returns:
        A row per sample; with folds, scored by the probe that never saw it.

    Raises:
        DataError: Training diverged, or there are more folds than samples.
    """
    if features_ND.dtype.kind != "f":
        features_ND = features_ND.astype(np.float32)
    n_samples, dim = features_ND.shape
    rows = np.arange(n_samples, dtype=np.int64)
    fold_N = draw_folds(rows, n_samples, config.folds, seed)
    specs = head_specs(config)
    with _few_threads(min(config.batch_size, n_samples) * dim * n_classes * len(specs)):
        heads, _ = train_heads(
            features_ND,
            label_N,
            specs,
            config,
            n_classes=n_classes,
            rows=rows,
            fold_N=fold_N,
            seed=seed,
            device=device,
            backend=backend,
        )
        return score(features_ND, rows, label_N, fold_N, heads, device, backend)


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
