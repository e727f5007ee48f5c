"""Logits of the tests of probe_step, and its tolerances.

Shapes: B samples, H heads, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# How far a field may be from the reference's, per backend. A term exp(z) is as wrong as z is
# rounded, so the bound is relative: 87 (below that f32 ends) times 6e-8, and some for the sums.
# Not even the smallest gradient hides below atol, where f32 has no normal numbers.
TOLERANCE = {
    "cpu": {"rtol": 1.5e-5, "atol": 4e-38},
    "gpu": {"rtol": 1.5e-5, "atol": 4e-38},
}
# For gradients of other dtypes: one unit in the last place where a half is rounded to either side.
GRADIENT_TOLERANCE = {
    "float16": {"rtol": 2**-10, "atol": 6e-8},
    "bfloat16": {"rtol": 2**-7, "atol": 4e-38},
    "float32": TOLERANCE["cpu"],
    "float64": {"rtol": 1e-11, "atol": 1e-300},
}


@dataclass(frozen=True)
class ProbeCase:
    """Shape and kind of the logits of one test."""

    name: str
    n_samples: int
    n_heads: int
    n_classes: int
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    scale: float = 4.0
    """Standard deviation of the logits."""
    bad_rows: bool = False
    """Put NaN and infinities into some rows."""
    weighted: bool = False
    """Leave a fold of the samples out of each head, and weigh the others."""


PROBE_CASES = (
    ProbeCase("no-samples", 0, 2, 5),
    ProbeCase("one-sample", 1, 1, 10),
    ProbeCase("one-class", 17, 3, 1, weighted=True),
    ProbeCase("two-classes-f64", 301, 2, 2, dtype="float64", weighted=True),
    ProbeCase("odd", 1237, 1, 37),
    ProbeCase("many-heads", 129, 33, 14, weighted=True),
    ProbeCase("half-over-two-blocks", 5003, 3, 11, dtype="float16", weighted=True),
    ProbeCase("brain-even", 1001, 2, 100, dtype="bfloat16"),
    ProbeCase("brain-odd", 303, 1, 257, dtype="bfloat16", weighted=True),
    ProbeCase("thousand-classes", 211, 1, 1000, weighted=True),
    ProbeCase("thousand-classes-f64", 31, 2, 1000, dtype="float64"),
    ProbeCase("more-than-a-tile", 7, 3, 5001),
    ProbeCase("sure", 503, 2, 10, scale=200.0),
    ProbeCase("bad-rows", 509, 2, 9, bad_rows=True, weighted=True),
)


def probe_inputs(case: ProbeCase, seed: int = 0) -> dict[str, Any]:
    """Make logits, most of which favour the label, labels, one q per head and weights.

    Args:
        case: one of PROBE_CASES.
        seed: the same seed gives the same arrays.

    Returns:
        logits_BHK (B, H, K) of case.dtype, bf16 as a torch tensor, else NumPy; labels_B (B,) i32;
        q_H (H,) f64, the first 0, the last 1 if there are several; weights_BH (B, H) f32 or None.
    """
    rng = np.random.default_rng([seed, case.n_samples, case.n_heads, case.n_classes])
    shape = (case.n_samples, case.n_heads, case.n_classes)
    logits_BHK = rng.normal(0.0, case.scale, shape)
    labels_B = rng.integers(0, case.n_classes, case.n_samples, dtype=np.int32)
    agree_B = np.flatnonzero(rng.random(case.n_samples) < 2 / 3)
    logits_BHK[agree_B, :, labels_B[agree_B]] += 3 * case.scale
    if case.bad_rows:
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            logits_BHK[row :: 3 * 13, row % case.n_heads, row % case.n_classes] = value
    weights_BH = None
    if case.weighted:
        weights_BH = rng.uniform(0.5, 2.0, shape[:2]).astype(np.float32)
        weights_BH[rng.integers(0, 5, case.n_samples)[:, None] == np.arange(case.n_heads)] = 0.0
    return {
        "logits_BHK": _of_dtype(logits_BHK, case.dtype),
        "labels_B": labels_B,
        "q_H": np.array([0.0]) if case.n_heads == 1 else np.linspace(0.0, 1.0, case.n_heads),
        "weights_BH": weights_BH,
    }


def _of_dtype(values: np.ndarray, dtype: str) -> Any:
    if dtype != "bfloat16":
        return values.astype(dtype)
    import torch

    return torch.from_numpy(values).to(torch.bfloat16)
