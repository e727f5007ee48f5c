"""probe: FeatureStore -> LossTable. A linear classifier that resists wrong labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.errors import DataError
from shardsieve.models.probe import Heads, head_specs, train_heads
from shardsieve.progress import Progress
from shardsieve_kernels import Backend
from shardsieve_kernels.softmax_stats import softmax_stats

# Bounds the logits of a scoring pass: 64 MB of f32 each.
_LOGITS_AT_ONCE = 16_777_216


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
    fold_N = _folds(rows, len(index), config.folds, seed)
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
    if not (np.isfinite(curve).all() and torch.isfinite(heads.weight_DHK).all()):
        raise DataError(
            f"the probe's training diverged (loss per epoch: {curve[:3, 0].tolist()} ...); "
            f"lower probe.lr ({config.lr})"
        )
    losses = _score(features, rows, label_N, fold_N, heads, device, backend)
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


def _folds(
    rows: npt.NDArray[np.int64], n_samples: int, folds: int, seed: int
) -> npt.NDArray[np.int8]:
    fold_N = np.full(n_samples, -1, np.int8)
    if folds == 0:
        return fold_N
    if folds > len(rows):
        raise DataError(f"probe.folds = {folds} but only {len(rows)} samples are readable")
    shuffled = np.random.default_rng([seed, 1]).permutation(rows)
    fold_N[shuffled] = np.arange(len(rows)) % folds
    return fold_N


def _score(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    label_N: npt.NDArray[np.int32],
    fold_N: npt.NDArray[np.int8],
    heads: Heads,
    device: torch.device,
    backend: Backend,
) -> LossTable:
    losses = LossTable.empty(len(label_N))
    losses.fold_N[:] = fold_N
    # Head 0 has seen everything; head 1 + f has not seen fold f.
    single = [heads.head(head) for head in range(heads.bias_HK.shape[0])]
    block_rows = max(1, min(65_536, _LOGITS_AT_ONCE // heads.bias_HK.shape[1]))
    for piece, block in features.blocks(rows, block_rows):
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
