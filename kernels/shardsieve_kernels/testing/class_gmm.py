"""Losses of the tests of class_gmm, and its tolerances.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

# How far a float field may be from the reference's, per backend. All of them work in float64.
TOLERANCE = {
    "cpu": {"rtol": 1e-6, "atol": 1e-6},
    "gpu": {"rtol": 1e-6, "atol": 1e-6},
}


@dataclass(frozen=True)
class GmmCase:
    """Class sizes and kind of the losses of one test."""

    name: str
    sizes_K: tuple[int, ...]
    kind: Literal["two-modes", "one-mode", "atoms", "equal", "outlier"] = "two-modes"

    @property
    def n_classes(self) -> int:
        """K, counting classes without a sample."""
        return len(self.sizes_K)


def web_sizes(n_classes: int, mean: float, seed: int = 0) -> tuple[int, ...]:
    """Draw class sizes as uneven as those of images found by a web search."""
    rng = np.random.default_rng(seed)
    shares_K = rng.lognormal(-0.18, 0.6, n_classes)
    return tuple(int(size) for size in np.maximum(mean * shares_K, 1))


def _long_tail(n_classes: int) -> tuple[int, ...]:
    return tuple(int(4000 / rank) for rank in range(1, n_classes + 1))


GMM_CASES = (
    GmmCase("no-samples", (0, 0, 0)),
    GmmCase("one-sample", (1,)),
    GmmCase("one-class", (2001,)),
    GmmCase("odd-sizes", (21, 101, 333, 1025)),
    GmmCase("empty-classes", (0, 200, 0, 0, 150, 0)),
    GmmCase("tiny-classes", tuple(range(1, 30))),
    GmmCase("five-thousand-classes", _long_tail(5000)),
    GmmCase("web", web_sizes(60, 800.0)),
    GmmCase("all-equal", (50, 100), kind="equal"),
    GmmCase("atoms", (400, 900, 1501), kind="atoms"),
    GmmCase("one-mode", (300, 1000, 2500), kind="one-mode"),
    GmmCase("outlier", (300, 1000), kind="outlier"),
)


def gmm_inputs(case: GmmCase, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make losses and labels, in a random order.

    Args:
        case: one of GMM_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        losses (N,) f32 in nats, not negative; labels (N,) i32.
    """
    rng = np.random.default_rng([seed, sum(case.sizes_K), case.n_classes])
    labels_N = np.repeat(np.arange(case.n_classes, dtype=np.int32), case.sizes_K)
    parts = [_class_losses(rng, size, case.kind) for size in case.sizes_K]
    losses_N = np.concatenate(parts).astype(np.float32)
    order = rng.permutation(len(labels_N))
    return losses_N[order], labels_N[order]


def _class_losses(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    if kind == "equal":
        return np.full(size, 2.3)
    if kind == "one-mode":
        return np.abs(rng.normal(1.0, 0.1, size))
    if kind == "outlier":
        losses = np.abs(rng.normal(1.0, 0.1, size))
        losses[0] = 500.0
        return losses
    noisy = rng.random(size) < rng.uniform(0.1, 0.6)
    high = rng.normal(rng.uniform(3.0, 6.0), 1.2, size)
    losses = np.abs(np.where(noisy, high, rng.lognormal(-0.3, 0.6, size)))
    if kind == "atoms":
        losses = np.round(losses * 4) / 4
        losses[rng.random(size) < 0.3] = 0.0
    return losses
