"""Logits of the tests of softmax_stats, and its tolerances.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

# How far a float field may be from the reference's, and the reference's from another float64
# computation. The GPU adds in f32 if the logits are f16 or f32.
TOLERANCE = {
    "reference": {"rtol": 3e-7, "atol": 1e-7},
    "cpu": {"rtol": 3e-7, "atol": 1e-7},
    "gpu": {"rtol": 2e-6, "atol": 1e-6},
}


@dataclass(frozen=True)
class SoftmaxCase:
    """Shape and kind of the logits of one test."""

    name: str
    n_samples: int
    n_classes: int
    dtype: Literal["float16", "float32", "float64"] = "float32"
    scale: float = 4.0
    """Standard deviation of the logits."""
    bad_rows: bool = False
    """Put NaN and infinities into some rows."""


SOFTMAX_CASES = (
    SoftmaxCase("no-samples", 0, 5),
    SoftmaxCase("one-sample", 1, 10),
    SoftmaxCase("one-class", 17, 1),
    SoftmaxCase("two-classes-f64", 301, 2, dtype="float64"),
    SoftmaxCase("odd", 1237, 37),
    SoftmaxCase("half-over-two-blocks", 5003, 11, dtype="float16"),
    SoftmaxCase("thousand-classes", 211, 1000),
    SoftmaxCase("sure", 503, 10, scale=200.0),
    SoftmaxCase("bad-rows", 509, 9, bad_rows=True),
)


def softmax_inputs(case: SoftmaxCase, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make logits, most of which favour the label, and labels.

    Args:
        case: one of SOFTMAX_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        logits (N, K) of case.dtype, labels (N,) i32.
    """
    rng = np.random.default_rng([seed, case.n_samples, case.n_classes])
    logits_NK = rng.normal(0.0, case.scale, (case.n_samples, case.n_classes))
    labels_N = rng.integers(0, case.n_classes, case.n_samples, dtype=np.int32)
    # Two in three samples agree with their label; otherwise every row would be a hard one.
    agree_N = np.flatnonzero(rng.random(case.n_samples) < 2 / 3)
    logits_NK[agree_N, labels_N[agree_N]] += 3 * case.scale
    if case.bad_rows:
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            logits_NK[row :: 3 * 13, row % case.n_classes] = value
    return logits_NK.astype(case.dtype), labels_N
