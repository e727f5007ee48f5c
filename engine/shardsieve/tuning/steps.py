"""The steps of an epoch: images in, gradients averaged over parts and processes, weights changed.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from shardsieve.tuning.evaluation import Batch, Reading
from shardsieve.tuning.job import Job
from shardsieve.tuning.optimisation import Optimisation
from shardsieve.tuning.order import Rows, share_of
from shardsieve.tuning.randomness import AUGMENT, STEP, seed_everything
from shardsieve.tuning.targets import Mixing, hard_targets, losses, soft_targets


@dataclass(slots=True)
class Outcome:
    """What a step came to in this process.

    Attributes:
        rows: The samples that were trained on, on the device.
        given_losses: f32, their cross entropy under the labels, nats.
        loss_sum: f32, the training loss summed over them.
        waiting_seconds: Waited for decoded images.
    """

    rows: torch.Tensor
    given_losses: torch.Tensor
    loss_sum: torch.Tensor
    waiting_seconds: float


class Steps:
    """Runs steps of one network."""

    def __init__(
        self,
        job: Job,
        reading: Reading,
        wrapped: nn.Module,
        network: nn.Module,
        optimisation: Optimisation,
    ) -> None:
        """Takes what all steps share.

        Args:
            job: Samples and settings.
            reading: How images reach the network.
            wrapped: The network as it is called, whose gradients are averaged over processes.
            network: The network itself.
            optimisation: What changes its weights.
        """
        self._job, self._reading = job, reading
        self._wrapped, self._network, self._optimisation = wrapped, network, optimisation
        config = job.config
        mixes = config.mixup > 0 or config.cutmix > 0
        self._mixing = Mixing(config, len(job.classes)) if mixes else None
        self._erase = None
        if config.erase:
            from timm.data.random_erasing import RandomErasing

            self._erase = RandomErasing(
                config.erase, mode="pixel", device=str(reading.group.device)
            )

    def run(self, steps: list[Rows], epoch: int, first: int) -> Iterator[Outcome]:
        """Trains the steps from `first` on and says what each came to.

        The loss is the mean over the rows of a step, whatever process or part computes them: an
        image that cannot be decoded counts as a loss of zero.
        """
        job, group, parts = self._job, self._reading.group, self._job.config.accumulate
        config = job.config
        transform = self._reading.preprocessing.training(
            config.crop_scale, config.flip, config.color_jitter, config.auto_augment
        )
        shares = [
            part
            for rows in steps[first:]
            for part in share_of(rows, group.rank, group.world, parts)
        ]
        if not shares:
            return
        stream = self._reading.batches(
            job.samples, shares, transform, seed=(job.seed, AUGMENT, epoch)
        )
        self._to_training()
        for step, rows in enumerate(steps[first:], first):
            self._optimisation.begin(epoch + step / len(steps))
            outcomes = []
            for part in range(parts):
                start = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - start
                # After the images are there: a loader that begins draws a number as well.
                seed_everything(job.seed, STEP, epoch, step, part, group.rank)
                with self._averaging_at(part == parts - 1):
                    outcomes.append(self._part(batch, len(rows), waited))
            self._optimisation.update()
            yield _joined(outcomes)

    def _to_training(self) -> None:
        self._network.train()
        if self._job.config.batch_norm == "frozen":
            for module in self._network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _averaging_at(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, at its last part."""
        if last or not isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def _part(self, batch: Batch, step_size: int, waited: float) -> Outcome:
        pixels, rows, _ = batch
        group, job = self._reading.group, self._job
        if not len(rows):
            return self._empty_part(waited)
        given_B = torch.from_numpy(job.samples.label_N[rows].astype(np.int64))
        label_B = _sent(given_B, group.device)
        images = self._reading.preprocessing.normalise(pixels, group.device)
        if self._erase is not None:
            images = self._erase(images)
        if self._mixing is not None:
            images, target_BK = self._mixing(images, label_B)
        elif job.beliefs is not None:
            target_BK = _sent(
                soft_targets(
                    job.beliefs, rows, given_B, len(job.classes), job.config.label_smoothing
                ),
                group.device,
            )
        else:
            target_BK = hard_targets(label_B, len(job.classes), job.config.label_smoothing)
        logits_BK = self._reading.logits(self._wrapped, images)
        loss_sum = losses(logits_BK, target_BK, job.config).sum()
        # DDP averages over the processes; the mean is over the whole step.
        self._optimisation.backward(loss_sum * (group.world / step_size))
        with torch.no_grad():
            loss_B = nn.functional.cross_entropy(logits_BK, label_B, reduction="none")
        at_B = _sent(torch.from_numpy(rows), group.device)
        return Outcome(at_B, loss_B, loss_sum.detach(), waited)

    def _empty_part(self, waited: float) -> Outcome:
        """Does nothing, but takes part where other processes wait for gradients."""
        device = self._reading.group.device
        if self._reading.group.world > 1:
            size = self._reading.preprocessing.size
            nothing = torch.zeros(1, 3, size, size, device=device)
            self._optimisation.backward(self._reading.logits(self._wrapped, nothing).sum() * 0)
        return Outcome(
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, device=device),
            torch.zeros((), device=device),
            waited,
        )


def _sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves numbers to a GPU without waiting for what it still has to do."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def _joined(outcomes: list[Outcome]) -> Outcome:
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        torch.cat([one.rows for one in outcomes]),
        torch.cat([one.given_losses for one in outcomes]),
        torch.stack([one.loss_sum for one in outcomes]).sum(),
        sum(one.waiting_seconds for one in outcomes),
    )
