"""Targets and losses: labels as distributions, and how far a prediction is from one.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shardsieve.config import TuneConfig
from shardsieve.tuning.job import Beliefs


def hard_targets(label_B: torch.Tensor, n_classes: int, smoothing: float) -> torch.Tensor:
    """Returns (B, K) f32: all on the label but a share that is spread over all classes."""
    return _smooth(functional.one_hot(label_B, n_classes).float(), smoothing)


def soft_targets(
    beliefs: Beliefs,
    rows: npt.NDArray[np.int64],
    label_B: torch.Tensor,
    n_classes: int,
    smoothing: float,
) -> torch.Tensor:
    """Returns (B, K) f32: what the selection believes, spread evenly where it says nothing.

    The label trained on gets its p_clean and the suggested class, if it is another one, its
    confidence; what is left of 1 goes to all classes alike. A sample that nobody judged keeps its
    label.
    """
    label = label_B.cpu().numpy()
    given = beliefs.given_N[rows].astype(np.float64)
    suggested = beliefs.suggested_N[rows]
    confidence = np.where(suggested >= 0, beliefs.confidence_N[rows], 0.0).astype(np.float64)
    judged = np.isfinite(given)
    given = np.where(judged, given, 1.0)
    other = judged & (suggested >= 0) & (suggested != label)
    confidence = np.where(other, np.minimum(confidence, 1 - given), 0.0)
    target = np.repeat(((1 - given - confidence) / n_classes)[:, None], n_classes, axis=1)
    at = np.arange(len(rows))
    target[at, label] += given
    target[at[other], suggested[other]] += confidence[other]
    return _smooth(torch.from_numpy(target.astype(np.float32)).to(label_B.device), smoothing)


def _smooth(target_BK: torch.Tensor, smoothing: float) -> torch.Tensor:
    if not smoothing:
        return target_BK
    return target_BK * (1 - smoothing) + smoothing / target_BK.shape[1]


def losses(logits_BK: torch.Tensor, target_BK: torch.Tensor, config: TuneConfig) -> torch.Tensor:
    """Returns (B,) f32 losses, differentiable.

    Cross entropy is -sum_k t_k log p_k; generalized cross entropy (Zhang & Sabuncu 2018) is
    sum_k t_k (1 - p_k^q) / q.
    """
    log_p_BK = functional.log_softmax(logits_BK, dim=1)
    if config.loss == "ce":
        return -(target_BK * log_p_BK).sum(1)
    return (target_BK * -torch.expm1(config.q * log_p_BK)).sum(1) / config.q


class Mixing:
    """mixup and cutmix by timm, for batches of any size."""

    def __init__(self, config: TuneConfig, n_classes: int) -> None:
        from timm.data import Mixup

        self._config, self._n_classes = config, n_classes
        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=n_classes,
        )

    def __call__(
        self, images: torch.Tensor, label_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mixed images and their (B, K) targets; of an odd batch the last stays as it is.

        timm takes batches of even size only, as it mixes the first image with the last.
        """
        even = len(images) // 2 * 2
        alone = hard_targets(label_B[even:], self._n_classes, self._config.label_smoothing)
        if not even:
            return images, alone
        mixed, target = self._mixup(images[:even].clone(), label_B[:even])
        return torch.cat([mixed, images[even:]]), torch.cat([target, alone.to(target)])
