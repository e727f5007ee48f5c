"""probe: FeatureStore -> LossTable. A linear classifier that resists wrong labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.errors import DataError
from shardsieve.models.probe import draw_folds, head_specs, score, train_heads
from shardsieve.progress import Progress
from shardsieve_kernels import Backend


def probe(
    index: SampleIndex,
    features: FeatureStore,
    config: ProbeConfig,
    *,
    out: Path,
    seed: int,
    device: torch.device,
    backend: Backend,
    progress: Progress,
) -> StageResult:
    """Trains the linear probe and scores every sample with it.

    TURN step 1: generalized cross entropy with q = 0.7 for 20 epochs on frozen features. With
    `config.folds` = k, k more heads are trained beside it in the same passes, and each sample is
    scored by the one that never saw it.

    Args:
        index: The samples and their labels.
        features: Their features.
        config: Solver, loss, epochs, scaling, folds.
        out: Folder that gets `losses.arrow` and `head.safetensors`.
        seed: Of shuffles and folds.
        device: Where the arithmetic runs.
        backend: Which kernels run.
        progress: Where to report.

    Raises:
        DataError: No sample is readable, or fewer than folds; or training diverged.
    """
    usable_N = index.readable_N & (features.reason_N == Reason.KEPT)
    rows = np.flatnonzero(usable_N)
    if not len(rows):
        raise DataError("no sample has both an image that decodes and a label: nothing to learn")
    fold_N = draw_folds(rows, len(index), config.folds, seed)
    label_N = index.label_N
    epochs = 1 if config.solver == "ridge" else config.epochs
    with progress.track("probe", epochs * len(rows), "samples") as advance:
        heads, curve = train_heads(
            features,
            label_N,
            head_specs(config),
            config,
            n_classes=index.n_classes,
            rows=rows,
            fold_N=fold_N,
            seed=seed,
            device=device,
            backend=backend,
            advance=advance,
        )
    losses = score(features, rows, label_N, fold_N, heads, device, backend)
    losses.write(out / "losses.arrow")
    weight_KD, bias_K = heads.folded(0)
    save_file(
        {"weight": weight_KD.cpu().numpy(), "bias": bias_K.cpu().numpy()},
        out / "head.safetensors",
    )
    agree = float(np.mean(losses.pred_N[rows] == label_N[rows]))
    return StageResult(
        counts={"samples": len(index), "scored": len(rows)},
        facts={
            "training_loss": curve[:, 0].tolist(),
            "agrees_with_label": agree,
            "classes": index.n_classes,
        },
    )
