"""tune: clean samples -> a fine-tuned network, read straight from the original shards.

Shapes: N samples, B batch, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import nn

from shardsieve.config import EmbedConfig, Precision, SelectConfig, TuneConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.record import StageResult
from shardsieve.data.table import replace_file
from shardsieve.errors import DataError
from shardsieve.models.backbone import Preprocessing, load_classifier
from shardsieve.models.precision import autocast, resolve_precision
from shardsieve.models.weights import in_order
from shardsieve.progress import Progress
from shardsieve.selection.turn import balanced_draw, mixture_losses, select_turn
from shardsieve.shards.dataset import Decoded, ImageRows, Transform, stream
from shardsieve_kernels import Backend
from shardsieve_kernels.softmax_stats import softmax_stats

_EVALUATION_BATCH = 64


@dataclass(slots=True)
class _Tuning:
    """What stays the same from epoch to epoch."""

    index: SampleIndex
    network: nn.Module
    preprocessing: Preprocessing
    config: TuneConfig
    precision: Precision
    device: torch.device
    workers: int
    seed: int
    progress: Progress

    def images(self, index: SampleIndex, transform: Transform, seed: int | None) -> ImageRows:
        return ImageRows(
            [ref.path for ref in index.shards],
            index.numbers("shard"),
            index.numbers("image_offset"),
            index.numbers("image_size"),
            transform,
            seed,
        )

    def stream(
        self, images: ImageRows, batches: list[npt.NDArray[np.int64]]
    ) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.int64], list[Decoded]]]:
        return stream(images, batches, workers=self.workers, device=self.device)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.preprocessing.normalise(pixels, self.device)
        with autocast(self.precision, self.device):
            output: torch.Tensor = self.network(images)
        return output.float()


def tune(
    index: SampleIndex,
    usable_N: npt.NDArray[np.bool_],
    kept_N: npt.NDArray[np.bool_],
    reviewed_N: npt.NDArray[np.bool_],
    head: Path,
    config: TuneConfig,
    *,
    embed_config: EmbedConfig,
    select_config: SelectConfig,
    q: float,
    validation: SampleIndex | None,
    out: Path,
    seed: int,
    device: torch.device,
    workers: int,
    backend: Backend,
    progress: Progress,
) -> StageResult:
    """Fine-tunes the whole network from the probe's head on the clean samples.

    TURN step 3: every epoch draws the same number of clean samples from each class, as many as the
    smallest class has; before every epoch but the first the mixtures are fitted anew to the losses
    of the network as it then is (`config.reselect`).

    Args:
        index: The samples; their images are read by offset from the original shards.
        usable_N: (N,) samples with a decodable image and a label.
        kept_N: (N,) samples that the selection kept.
        reviewed_N: (N,) samples that people decided on; reselection leaves them as they are.
        head: The probe's `head.safetensors`.
        config: Epochs, optimiser, augmentation, reselection.
        embed_config: The backbone as it was embedded.
        select_config: The recipe, for reselection.
        q: Of the probe's loss, for `select_config.loss` = "gce".
        validation: Clean samples to measure accuracy on; the best epoch is then the one saved.
        out: Folder that gets `model.safetensors` and `metrics.jsonl`.
        seed: Of draws and augmentation.
        device: Where the network runs.
        workers: Processes that decode.
        backend: Which kernels select.
        progress: Where to report.

    Raises:
        DataError: No sample is clean.
        BackboneError: The network has no linear classifier.
    """
    if validation is not None and not validation.readable_N.any():
        raise DataError("the validation shards hold no sample with an image and a label")
    if not kept_N.any():
        raise DataError("no sample is clean, so there is nothing to fine-tune on; lower select.tau")
    weights = load_file(head)
    torch.manual_seed(seed)
    network, preprocessing = load_classifier(
        embed_config, weights["weight"], weights["bias"], device
    )
    tuning = _Tuning(
        index,
        network,
        preprocessing,
        config,
        resolve_precision(config.precision, device),
        device,
        workers,
        seed,
        progress,
    )
    optimiser = _optimiser(network, config)
    scaler = torch.amp.GradScaler(device.type, enabled=tuning.precision == "fp16")
    metrics: list[dict[str, Any]] = []
    notes: list[str] = []
    best, saved_epoch, images = -1.0, 0, 0
    decided_N = kept_N[reviewed_N]
    for epoch in range(config.epochs):
        start = time.monotonic()
        # The mixtures of `turn` are fitted anew; what `best` kept stays, as its p_clean is surer.
        if epoch and config.reselect == "epoch" and select_config.recipe == "turn":
            losses_N = _losses(tuning, usable_N, backend)
            images += int(usable_N.sum())
            kept_N = _reselect(index, losses_N, select_config, q, backend)
            kept_N[reviewed_N] = decided_N
            if not kept_N.any():
                raise DataError(f"epoch {epoch + 1}: reselection left no clean sample")
        rows, per_class, absent = _draw(tuning, kept_N, epoch)
        if absent:
            names = ", ".join(index.classes[label] for label in absent)
            notes.append(f"epoch {epoch + 1}: no clean sample of: {names}")
        loss = _train_epoch(tuning, rows, epoch, optimiser, scaler)
        images += len(rows)
        row = {
            "epoch": epoch + 1,
            "kept": int(kept_N.sum()),
            "per_class": per_class,
            "drawn": len(rows),
            "training_loss": loss,
            "seconds": round(time.monotonic() - start, 3),
        }
        if validation is not None:
            row["validation_accuracy"] = _accuracy(tuning, validation)
        metrics.append(row)
        score = row.get("validation_accuracy", float(epoch))
        if score > best:
            best, saved_epoch = score, epoch + 1
            _save(out / "model.safetensors", tuning, embed_config, saved_epoch)
        progress.note("tune: " + ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
    if validation is not None and len(validation) > validation.readable_N.sum():
        unusable = len(validation) - int(validation.readable_N.sum())
        notes.append(
            f"{unusable:,} of {len(validation):,} validation samples have no image or label"
        )
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    last = metrics[-1]
    return StageResult(
        counts={"epochs": config.epochs, "drawn": last["drawn"], "per_class": last["per_class"]},
        facts={
            "metrics": metrics,
            "saved_epoch": saved_epoch,
            "precision": tuning.precision,
        },
        notes=notes,
        images=images,
    )


def _optimiser(network: nn.Module, config: TuneConfig) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        network, opt=config.optimiser, lr=config.lr, weight_decay=config.weight_decay, momentum=0.9
    )
    return optimiser


def _draw(
    tuning: _Tuning, kept_N: npt.NDArray[np.bool_], epoch: int
) -> tuple[npt.NDArray[np.int64], int, list[int]]:
    kept = np.flatnonzero(kept_N)
    drawn, per_class, absent = balanced_draw(
        tuning.index.label_N[kept],
        tuning.index.n_classes,
        at_most=tuning.config.max_samples,
        rng=np.random.default_rng([tuning.seed, 2, epoch]),
    )
    return kept[drawn], per_class, absent


def _train_epoch(
    tuning: _Tuning,
    rows: npt.NDArray[np.int64],
    epoch: int,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> float:
    config = tuning.config
    label_N = tuning.index.label_N
    transform = tuning.preprocessing.training(config.crop_scale, config.flip)
    images = tuning.images(tuning.index, transform, seed=tuning.seed * 10_007 + epoch)
    # Nearly equal batches: a last batch of one would give batch norm nothing to average over.
    batches = np.array_split(rows, math.ceil(len(rows) / config.batch_size))
    tuning.network.train()
    if config.batch_norm == "frozen":
        for module in tuning.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    total = torch.zeros((), device=tuning.device)
    stage = f"tune {epoch + 1}/{config.epochs}"
    with tuning.progress.track(stage, len(rows), "images") as advance:
        for step, (pixels, good_rows, bad) in enumerate(tuning.stream(images, batches)):
            advance(len(good_rows) + len(bad))
            if not len(good_rows):
                continue
            if config.schedule == "cosine":
                done = (epoch + step / len(batches)) / config.epochs
                for group in optimiser.param_groups:
                    group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * done))
            labels = torch.from_numpy(label_N[good_rows].astype(np.int64)).to(tuning.device)
            loss = nn.functional.cross_entropy(tuning.logits(pixels), labels)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            total += loss.detach() * len(good_rows)
    mean = float(total) / len(rows)
    if not math.isfinite(mean):
        raise DataError(
            f"epoch {epoch + 1}: the training loss is {mean}; lower tune.lr ({config.lr})"
        )
    return mean


@torch.inference_mode()
def _evaluate(
    tuning: _Tuning,
    index: SampleIndex,
    rows: npt.NDArray[np.int64],
    stage: str,
    use: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], None],
) -> None:
    tuning.network.eval()
    images = tuning.images(index, tuning.preprocessing.evaluation(), seed=None)
    batches = np.array_split(rows, math.ceil(len(rows) / _EVALUATION_BATCH))
    with tuning.progress.track(stage, len(rows), "images") as advance:
        for pixels, good_rows, bad in tuning.stream(images, batches):
            advance(len(good_rows) + len(bad))
            if len(good_rows):
                use(good_rows, tuning.logits(pixels).cpu().numpy())


def _losses(
    tuning: _Tuning, usable_N: npt.NDArray[np.bool_], backend: Backend
) -> npt.NDArray[np.float32]:
    label_N = tuning.index.label_N
    losses_N = np.full(len(label_N), np.nan, np.float32)

    def use(rows: npt.NDArray[np.int64], logits_BK: npt.NDArray[np.float32]) -> None:
        losses_N[rows] = softmax_stats(logits_BK, label_N[rows], backend=backend).loss_N

    _evaluate(tuning, tuning.index, np.flatnonzero(usable_N), "reselect", use)
    return losses_N


def _reselect(
    index: SampleIndex,
    losses_N: npt.NDArray[np.float32],
    config: SelectConfig,
    q: float,
    backend: Backend,
) -> npt.NDArray[np.bool_]:
    rows = np.flatnonzero(np.isfinite(losses_N))
    selection = select_turn(
        mixture_losses(losses_N[rows], config.loss, q),
        index.label_N[rows],
        index.n_classes,
        preset=config.gmm,
        min_samples=config.min_samples,
        reg_covar=config.reg_covar,
        backend=backend,
    )
    kept_N = np.zeros(len(index), bool)
    kept_N[rows] = selection.p_clean_N > config.tau
    return kept_N


def _accuracy(tuning: _Tuning, validation: SampleIndex) -> float:
    rows = np.flatnonzero(validation.readable_N)
    right = seen = 0

    def use(rows: npt.NDArray[np.int64], logits_BK: npt.NDArray[np.float32]) -> None:
        nonlocal right, seen
        right += int(np.count_nonzero(logits_BK.argmax(1) == validation.label_N[rows]))
        seen += len(rows)

    _evaluate(tuning, validation, rows, "validate", use)
    if not seen:
        raise DataError("no validation image can be decoded; look at the validation shards")
    return right / seen


def _save(path: Path, tuning: _Tuning, embed_config: EmbedConfig, epoch: int) -> None:
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tuning.network.state_dict().items()
    }
    about = {
        "format": "pt",
        "backbone": embed_config.backbone,
        "classes": json.dumps(tuning.index.classes),
        "preprocessing": json.dumps(dataclasses.asdict(tuning.preprocessing)),
        "epoch": str(epoch),
    }
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(in_order(save(state, metadata=about)))
    replace_file(temporary, path)
