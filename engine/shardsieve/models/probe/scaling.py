"""How features are scaled before a linear head sees them.

Shapes: B batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.models.probe.source import FeatureSource, sequential
from shardsieve.models.probe.together import ALONE, Together

Normalise = Literal["standardise", "l2", "none"]

# Added to the variance of each feature, as a share of the mean variance.
_LEAST_VARIANCE = 0.01
_TINY = 1e-12
# Rows read at a time, and rows measured at a time: f32 that stay in the cache.
_ROWS = 8192
_TILE = 256


@dataclass(frozen=True, slots=True)
class Scaling:
    """How features are scaled before a head sees them.

    Attributes:
        mode: `standardise`, `l2` or `none`.
        shift_D: f32, subtracted.
        scale_D: f32, multiplied afterwards: 1 / sqrt(variance + 0.01 mean variance).
        norm: Mean length of a feature vector.
    """

    mode: Normalise
    shift_D: torch.Tensor
    scale_D: torch.Tensor
    norm: float

    def apply(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Returns scaled (B, D) f32."""
        return self.apply_(features_BD.clone())

    def apply_(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Scales (B, D) f32 in place and returns them."""
        if self.mode == "standardise":
            return features_BD.sub_(self.shift_D).mul_(self.scale_D)
        if self.mode == "l2":
            # As torch.nn.functional.normalize: a vector of zeros stays one.
            return features_BD.div_(features_BD.norm(dim=1, keepdim=True).clamp_min_(1e-12))
        return features_BD


def fit_scaling(
    features: FeatureSource,
    rows: npt.NDArray[np.int64],
    mode: Normalise,
    device: torch.device,
    group: Together = ALONE,
) -> Scaling:
    """Measures mean, standard deviation and length of the features in one pass.

    In f32 within 256 rows, less the mean of the first ones; their sums are added up in f64.

    Args:
        features: Cached features.
        rows: (R,) rows to measure, one at least.
        mode: What will be done with them.
        device: Where the result shall be.
        group: Processes with other samples: all get the scaling of all samples.
    """
    total = torch.zeros(features.dim, dtype=torch.float64)
    squares = torch.zeros(features.dim, dtype=torch.float64)
    lengths = 0.0
    # Centred on the first rows, so that the variance keeps its digits (numerics: E[x^2] - m^2).
    centre: torch.Tensor | None = None
    for _, block in sequential(features, rows, _ROWS):
        for start in range(0, len(block), _TILE):
            tile = torch.from_numpy(block[start : start + _TILE])
            if mode == "l2":
                lengths += float(tile.double().norm(dim=1).sum())
            if centre is None:
                centre = group.from_leader_(tile.double().mean(0).float())
            values = tile.float() - centre
            total += values.sum(0)
            squares += values.square_().sum(0)
    assert centre is not None, "callers pass at least one row"
    own = torch.tensor([lengths, len(rows)], dtype=torch.float64)
    sums = group.sum_(torch.cat([total, squares, own]))
    total, squares, (length, count) = torch.split(sums, [features.dim, features.dim, 2])
    offset = total / count
    variance = (squares / count - offset.square()).clamp_min_(0)
    # A feature that hardly varies is all rounding: unit variance would make that its signal, and a
    # head folded onto plain features would have weights in the thousands there.
    scale = (variance + _LEAST_VARIANCE * variance.mean() + _TINY).rsqrt()
    return Scaling(
        mode,
        (centre.double() + offset).float().to(device),
        scale.float().to(device),
        float(length / count),
    )
