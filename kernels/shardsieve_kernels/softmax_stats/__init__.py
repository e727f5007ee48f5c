"""What the logits say about each sample: losses, margin, prediction, entropy.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from shardsieve_kernels._backend import Backend, implementation
from shardsieve_kernels._checks import (
    FLOATS,
    INTEGERS,
    check_array,
    check_in_range,
    check_labels,
    check_same_length,
)

__all__ = ["SoftmaxStats", "softmax_stats"]

Q_IS_ZERO = 1e-30


class SoftmaxStats(NamedTuple):
    """Per-sample statistics of the softmax; NaN, and pred -1, where a row was not usable."""

    loss_N: np.ndarray
    """(N,) f32, nats: cross entropy, -log p(label)."""
    gce_N: np.ndarray
    """(N,) f32: generalised cross entropy, (1 - p(label)^q) / q."""
    margin_N: np.ndarray
    """(N,) f32 in [-1, 1]: p(label) - max p(another class); 1 if there is one class."""
    pred_N: np.ndarray
    """(N,) i32: class of the largest logit, the smallest index of equals."""
    p_label_N: np.ndarray
    """(N,) f32 in [0, 1]: p(label)."""
    entropy_N: np.ndarray
    """(N,) f32, nats, in [0, log K]: entropy of p."""


def softmax_stats(
    logits_NK: np.ndarray, labels_N: np.ndarray, *, q: float = 0.7, backend: Backend
) -> SoftmaxStats:
    """Compute the losses and the confidence of each sample from its logits.

    The generalised cross entropy is that of Zhang and Sabuncu (arXiv 1805.07836), in the form
    -expm1(-q loss) / q, which keeps its digits for small q and tends to the cross entropy.
    The normalised margin is that of Northcutt et al. (arXiv 1911.00068).

    Args:
        logits_NK: (N, K) f16, f32 or f64, K >= 1.
        labels_N: (N,) i32 or i64 in [0, K): the label as given.
        q: exponent of the generalised cross entropy, in [0, 1]; 0, and all
            below 1e-30, gives the cross entropy.
        backend: from resolve_backend.

    Returns:
        SoftmaxStats. A row with a logit that is NaN or infinite, or whose loss does not fit in
        f32, has pred -1 and NaN elsewhere: the caller decides what to do with such a sample.
        With backend "gpu" the fields are CuPy arrays if an argument is one.

    Raises:
        TypeError: an argument is not an array that the backend reads, or has another dtype.
        ValueError: a shape, a label or q is out of range.
        BackendUnavailable: the backend is unknown or cannot run here.

    Guarantees:
        Same backend, same bits, whatever the other rows are and however many threads run.
        Backends agree to ``testing.TOLERANCE["softmax_stats"]``.
    """
    check_array("logits_NK", logits_NK, 2, FLOATS, backend)
    check_array("labels_N", labels_N, 1, INTEGERS, backend)
    check_same_length("logits_NK", logits_NK, "labels_N", labels_N)
    if logits_NK.shape[1] < 1:
        raise ValueError(
            f"logits_NK must have at least one column, found shape {logits_NK.shape}; "
            "pass one column per class"
        )
    check_labels("labels_N", labels_N, logits_NK.shape[1])
    check_in_range("q", q, 0.0, 1.0)
    run = implementation("softmax_stats", backend)
    # (1 - p^q) / q loses its digits where q times the loss is subnormal, and is the loss by then.
    return cast("SoftmaxStats", run(logits_NK, labels_N, float(q) if q >= Q_IS_ZERO else 0.0))
