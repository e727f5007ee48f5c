"""AdamW over all heads at once, batch by batch.

Shapes: B batch, D features, H heads, K classes, E epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from shardsieve.models.probe.batches import Batches
from shardsieve.models.probe.gradient import LossGradient
from shardsieve.models.probe.heads import HeadSpec
from shardsieve.models.probe.targets import Targets
from shardsieve.models.probe.together import ALONE, Together

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
# Standard deviation of the weights that a seeded head starts from.
_START = 0.01


class AdamW:
    """Loshchilov & Hutter 2019, as torch.optim.AdamW, with a step size and a decay per column."""

    def __init__(
        self,
        parameters: torch.Tensor,
        lr_C: torch.Tensor,
        weight_decay_C: torch.Tensor,
        n_steps: int,
    ) -> None:
        """Starts with both moments at zero.

        Args:
            parameters: (D + 1, C) f32; the last row, the biases, does not decay.
            lr_C: (C,) step sizes at their peak; they fall to zero along a cosine.
            weight_decay_C: (C,).
            n_steps: Steps until they are zero.
        """
        self._parameters = parameters
        self._lr_C, self._decay_C = lr_C, lr_C * weight_decay_C
        self._n_steps = n_steps
        self._step = 0
        self._first = torch.zeros_like(parameters)
        self._second = torch.zeros_like(parameters)
        self._scratch = torch.empty_like(parameters)

    def step(self, gradient: torch.Tensor) -> None:
        """Takes one step; nothing waits for the device."""
        schedule = (1 + math.cos(math.pi * self._step / self._n_steps)) / 2
        self._step += 1
        unbias1, unbias2 = 1 - _BETA1**self._step, 1 - _BETA2**self._step
        self._first.lerp_(gradient, 1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        # m / unbias1 / (sqrt(v / unbias2) + eps), multiplied out by sqrt(unbias2).
        root = math.sqrt(unbias2)
        torch.sqrt(self._second, out=self._scratch).add_(_EPSILON * root)
        torch.div(self._first, self._scratch, out=self._scratch)
        self._parameters[:-1].mul_(1 - schedule * self._decay_C)
        self._parameters.addcmul_(self._scratch, self._lr_C, value=-schedule * root / unbias1)


def start_weights(specs: Sequence[HeadSpec], dim: int, n_classes: int) -> torch.Tensor:
    """Returns (D + 1, H K) f32 on the CPU, from which `minibatch` starts."""
    parameters = torch.zeros(dim + 1, len(specs), n_classes)
    for head, spec in enumerate(specs):
        if spec.seed is not None:
            generator = torch.Generator().manual_seed(spec.seed)
            parameters[:-1, head] = _START * torch.randn(dim, n_classes, generator=generator)
    return parameters.flatten(1)


def train_minibatch(
    parameters: torch.Tensor,
    batches: Batches,
    targets: Targets,
    losses: LossGradient,
    specs: Sequence[HeadSpec],
    *,
    epochs: int,
    on_epoch: Callable[[int], None],
    advance: Callable[[int], None],
    group: Together = ALONE,
) -> torch.Tensor:
    """Trains all heads in place, one pass over the features per epoch.

    All heads see the same batches; a step follows the mean gradient of the samples that the head
    may see, weighted by their weights. Several processes each bring a part of every batch, and take
    the same step.

    Args:
        parameters: (D + 1, H K) f32, where to start from.
        batches: The features.
        targets: Labels, folds and weights.
        losses: Computes the gradients.
        specs: Step sizes and decay.
        epochs: Passes over the features.
        on_epoch: Called with the number of each epoch that has ended.
        advance: Called with the number of samples of each batch, those of this process.
        group: The processes.

    Returns:
        (E, H) f64 mean loss of a sample during each epoch, by head.
    """
    device = parameters.device
    n_classes = parameters.shape[1] // len(specs)

    def columns(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=device).repeat_interleave(n_classes)

    optimiser = AdamW(
        parameters,
        columns([spec.lr for spec in specs]),
        columns([spec.weight_decay for spec in specs]),
        epochs * batches.per_epoch,
    )
    gradient = torch.empty_like(parameters)
    curve = torch.zeros(epochs, len(specs), dtype=torch.float64, device=device)
    for epoch in range(epochs):
        seen_H = torch.zeros(len(specs), dtype=torch.float64, device=device)
        for batch in batches.epoch(epoch):
            # A copy where products are of f16; the parameters themselves otherwise.
            current = parameters.to(batches.dtype)
            n_rows = 0
            weighted = not targets.all_weigh_the_same
            total_H = torch.zeros(len(specs), device=device)
            for inputs_BD, where in batch:
                labels_B, weights_BH = targets.at(where)
                loss_BH = losses.add_to(
                    gradient, inputs_BD, current, labels_B, weights_BH, first=n_rows == 0
                )
                if weights_BH is not None:
                    loss_BH = loss_BH * weights_BH
                    total_H += weights_BH.sum(0)
                curve[epoch] += loss_BH.sum(0)
                n_rows += len(labels_B)
            advance(n_rows)
            count: int | torch.Tensor = n_rows
            if group.world > 1:
                if not n_rows:
                    gradient.zero_()
                group.sum_(gradient)
                sums = group.sum_(torch.cat([total_H, total_H.new_tensor([n_rows])]))
                total_H, count = sums[:-1], sums[-1]
            if weighted:
                seen_H += total_H
                # A head that may see none of the batch has no gradient to divide.
                share_H = torch.where(total_H > 0, total_H, 1.0).reciprocal()
                gradient.mul_(share_H.repeat_interleave(n_classes))
            else:
                seen_H += count
                gradient.mul_(1 / count)
            optimiser.step(gradient)
        group.sum_(curve[epoch])
        curve[epoch] /= seen_H
        on_epoch(epoch)
    return curve
