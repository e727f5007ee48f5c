"""Linear heads on cached features: what they are, and what each is trained with.

Shapes: N samples, B batch, D features, H heads, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shardsieve.models.probe.scaling import Scaling


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What one head is trained with; heads with different specs share every pass.

    Attributes:
        q: Of generalised cross entropy, in [0, 1]; 0 is cross entropy.
        lr: Peak step size of `minibatch`.
        weight_decay: Decoupled weight decay of `minibatch`.
        l2: Penalty l2 K^-q / 2 |W|^2 of `mm`, beside the mean loss; the bias has none.
        fold: The head never sees samples of this fold; None sees all.
        seed: None starts `minibatch` from zero, a number from small normal weights of its own.
    """

    q: float = 0.7
    lr: float = 1e-3
    weight_decay: float = 1e-2
    l2: float = 0.07
    fold: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Heads:
    """H linear classifiers on scaled features.

    Attributes:
        weight_DHK: f32.
        bias_HK: f32.
        scaling: What they were trained on.
    """

    weight_DHK: torch.Tensor
    bias_HK: torch.Tensor
    scaling: Scaling

    def logits(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Returns (B, H, K) f32 for raw features (B, D)."""
        scaled = self.scaling.apply_(features_BD.to(self.bias_HK.device, torch.float32, copy=True))
        weight = self.weight_DHK.flatten(1)
        logits = torch.addmm(self.bias_HK.flatten(), scaled, weight)
        return logits.view(-1, *self.bias_HK.shape)

    def head(self, head: int) -> Heads:
        """Returns one of them, as one head."""
        one = slice(head, head + 1)
        return Heads(self.weight_DHK[:, one].contiguous(), self.bias_HK[one], self.scaling)

    def folded(self, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (K, D) weight and (K,) bias of one head that take features as they are.

        Exact for `standardise` and `none`. For `l2` the length of every sample is replaced by the
        mean length: the same direction, up to one factor per sample.
        """
        weight_DK, bias_K = self.weight_DHK[:, head], self.bias_HK[head]
        scaling = self.scaling
        if scaling.mode == "l2":
            weight_DK = weight_DK / scaling.norm
        elif scaling.mode == "standardise":
            weight_DK = weight_DK * scaling.scale_D[:, None]
            bias_K = bias_K - scaling.shift_D @ weight_DK
        return weight_DK.T.contiguous(), bias_K
