"""Linear heads on cached features, several at once, trained in mini-batches.

Shapes: H heads, B batch, D features, K classes, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore

# Rows gathered at a time: one sequential pass over the shards each, 128 MB of f16 at D = 1,024.
BLOCK_ROWS = 65_536
# Added to the variance of each feature, as a share of the mean variance.
_LEAST_VARIANCE = 0.01
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Scaling:
    """How features are scaled before a head sees them.

    Attributes:
        mode: `standardise`, `l2` or `none`.
        shift_D: f32, subtracted.
        scale_D: f32, multiplied afterwards: 1 / sqrt(variance + 0.01 mean variance).
        norm: Mean length of a feature vector.
    """

    mode: Literal["standardise", "l2", "none"]
    shift_D: torch.Tensor
    scale_D: torch.Tensor
    norm: float

    def apply(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Returns scaled (B, D) f32."""
        if self.mode == "none":
            return features_BD
        if self.mode == "l2":
            return torch.nn.functional.normalize(features_BD, dim=1)
        return (features_BD - self.shift_D) * self.scale_D


def fit_scaling(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    mode: Literal["standardise", "l2", "none"],
    device: torch.device,
) -> Scaling:
    """Measures mean, standard deviation and length of the features in one pass, in f64."""
    total = torch.zeros(features.dim, dtype=torch.float64)
    squares = torch.zeros(features.dim, dtype=torch.float64)
    lengths = 0.0
    # Centred on the first block, so that the variance keeps its digits (numerics: E[x^2] - m^2).
    centre: torch.Tensor | None = None
    for _, block in features.blocks(rows, BLOCK_ROWS):
        values = torch.from_numpy(block).double()
        lengths += float(values.norm(dim=1).sum())
        centre = values.mean(0) if centre is None else centre
        total += (values - centre).sum(0)
        squares += (values - centre).square_().sum(0)
    assert centre is not None, "callers pass at least one row"
    offset = total / len(rows)
    variance = (squares / len(rows) - offset.square()).clamp_min_(0)
    # A feature that hardly varies is all rounding: unit variance would make that its signal, and a
    # head folded onto plain features would have weights in the thousands there.
    scale = (variance + _LEAST_VARIANCE * variance.mean() + _TINY).rsqrt()
    return Scaling(
        mode, (centre + offset).float().to(device), scale.float().to(device), lengths / len(rows)
    )


@dataclass(frozen=True, slots=True)
class Heads:
    """H linear classifiers on scaled features.

    Attributes:
        weight_HDK: f32.
        bias_HK: f32.
        scaling: What they were trained on.
    """

    weight_HDK: torch.Tensor
    bias_HK: torch.Tensor
    scaling: Scaling

    def logits(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Returns (H, B, K) f32 for raw features (B, D) f32."""
        scaled = self.scaling.apply(features_BD)
        return torch.matmul(scaled, self.weight_HDK) + self.bias_HK[:, None, :]

    def folded(self, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (K, D) weight and (K,) bias of one head that take features as they are.

        Exact for `standardise` and `none`. For `l2` the length of every sample is replaced by the
        mean length: the same direction, up to one factor per sample.
        """
        weight_DK, bias_K = self.weight_HDK[head], self.bias_HK[head]
        scaling = self.scaling
        if scaling.mode == "l2":
            weight_DK = weight_DK / scaling.norm
        elif scaling.mode == "standardise":
            weight_DK = weight_DK * scaling.scale_D[:, None]
            bias_K = bias_K - scaling.shift_D @ weight_DK
        return weight_DK.T.contiguous(), bias_K


def gce_gradient(
    logits: torch.Tensor, labels: torch.Tensor, q: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized cross entropy and its gradient in the logits.

    L = (1 - p_y^q) / q and dL/dz = p_y^q (p - e_y) (Zhang & Sabuncu 2018, eq. 6 and section 3.3),
    in the log domain: -expm1(q log p_y) / q is exact for q and p near 0, and a weight that
    underflows leaves a sample out as the loss intends. q = 0 is cross entropy.

    Args:
        logits: (..., B, K) f32.
        labels: (B,) i64.
        q: In [0, 1].

    Returns:
        (..., B) loss and (..., B, K) gradient of each sample's loss.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    index = labels.expand(log_p.shape[:-1]).unsqueeze(-1)
    log_p_y = log_p.gather(-1, index)
    gradient = log_p.exp().scatter_add_(-1, index, torch.full_like(log_p_y, -1.0))
    if q == 0:
        return -log_p_y.squeeze(-1), gradient
    loss = -torch.expm1(q * log_p_y) / q
    return loss.squeeze(-1), gradient.mul_(torch.exp(q * log_p_y))


def train_heads(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    held_out_HN: npt.NDArray[np.bool_],
    config: ProbeConfig,
    *,
    seed: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[Heads, list[float]]:
    """Trains H heads in one pass over the features per epoch.

    AdamW with a cosine to zero. All heads start at zero and see the same batches; a head's loss
    leaves out the samples that it must not see.

    Args:
        features: Cached features.
        rows: (R,) rows that may be trained on.
        label_N: (N,) labels of all samples.
        n_classes: K.
        held_out_HN: (H, N) True where a head must not see a sample.
        config: Loss, epochs, step sizes.
        seed: Of the shuffles.
        device: Where the arithmetic runs.
        advance: Called with the number of samples of each step.

    Returns:
        The heads, and the mean training loss of the first one per epoch.
    """
    scaling = fit_scaling(features, rows, config.normalise, device)
    n_heads = len(held_out_HN)
    weight_HDK = torch.zeros(n_heads, features.dim, n_classes, device=device)
    bias_HK = torch.zeros(n_heads, n_classes, device=device)
    optimiser = torch.optim.AdamW(
        [
            {"params": [weight_HDK], "weight_decay": config.weight_decay},
            {"params": [bias_HK], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    q = config.q if config.loss == "gce" else 0.0
    curve = []
    for epoch in range(config.epochs):
        shuffled = np.random.default_rng([seed, epoch]).permutation(rows)
        total = torch.zeros((), device=device)
        for batch_rows, block in _batches(features, shuffled, config.batch_size):
            inputs = scaling.apply(torch.from_numpy(block).to(device).float())
            labels = torch.from_numpy(label_N[batch_rows].astype(np.int64)).to(device)
            logits = torch.matmul(inputs, weight_HDK) + bias_HK[:, None, :]
            loss_HB, gradient = gce_gradient(logits, labels, q)
            seen = torch.from_numpy(~held_out_HN[:, batch_rows]).to(device)
            gradient *= (seen / seen.sum(1, keepdim=True).clamp_min(1))[:, :, None]
            weight_HDK.grad = torch.matmul(inputs.T, gradient)
            bias_HK.grad = gradient.sum(1)
            optimiser.step()
            schedule.step()
            total += loss_HB[0].sum()
            advance(len(batch_rows))
        curve.append(float(total) / len(rows))
    return Heads(weight_HDK, bias_HK, scaling), curve


def _batches(
    features: FeatureStore, rows: npt.NDArray[np.int64], batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    for block_rows, block in features.blocks(rows, max(1, BLOCK_ROWS // batch_size) * batch_size):
        for start in range(0, len(block_rows), batch_size):
            piece = slice(start, start + batch_size)
            yield block_rows[piece], block[piece]
