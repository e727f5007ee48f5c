"""From logits to loss and gradient: one step of training linear heads under noisy labels.

Shapes: B samples of a batch, H heads (folds, seeds, values of q), K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shardsieve_kernels._arrays import as_like, as_plain, dtype_name, is_on_gpu, stream_of
from shardsieve_kernels._backend import Backend, implementation
from shardsieve_kernels._checks import (
    FLOATS,
    INTEGERS,
    check_array,
    check_finite,
    check_in_range,
    check_labels,
    check_same_length,
)

__all__ = ["ProbeStep", "probe_step"]

Q_IS_ZERO = 1e-30
_F32_MAX = float(np.finfo(np.float32).max)


class ProbeStep(NamedTuple):
    """Loss and gradient of a batch, of the array library of the logits and on their device."""

    loss_BH: Any
    """(B, H) f32: generalised cross entropy, not weighted; NaN where a row was not usable."""
    gradient_BHK: Any
    """(B, H, K), dtype of the logits: weight times the derivative of the loss by the logits."""


def probe_step(
    logits_BHK: Any,
    labels_B: Any,
    q_H: Any,
    *,
    weights_BH: Any = None,
    out: Any = None,
    checked: bool = False,
    backend: Backend,
) -> ProbeStep:
    """Compute the generalised cross entropy of each sample and head, and its gradient.

    With p = softmax(logits) and y the label, loss = (1 - p_y^q) / q and gradient = p_y^q (p - e_y),
    which is the cross entropy and its gradient for q = 0 and the mean absolute error for q = 1
    (Zhang and Sabuncu, arXiv 1805.07836). No (B, H, K) array is made beside the gradient, and none
    at all with ``out=logits_BHK``. The sums over the batch are the caller's, as is their division.

    Arrays are NumPy's or torch's, with backend "gpu" also CuPy's, and are not copied if they lie in
    C order on the device that computes. bf16 comes from torch or from the package ml_dtypes.

    Args:
        logits_BHK: (B, H, K) f16, bf16, f32 or f64; H, K >= 1. Heads side by side, as one product
            of (B, D) features with (D, H K) weights leaves them.
        labels_B: (B,) i32 or i64 in [0, K).
        q_H: (H,) f32 or f64, or a list of floats, in [0, 1]: exponent of each head. What is below
            1e-30 counts as 0. On a GPU give an array of the device, a list is copied at each call.
        weights_BH: (B, H) f32, finite: factor of each gradient. 0 leaves a sample out of a head:
            its gradient is 0, its loss is computed all the same. None is 1 everywhere.
        out: where the gradient goes, like ``logits_BHK`` in shape, dtype and device, in C order.
            It may be the logits themselves, but not overlap with them in part.
        checked: the values of labels, q and weights are known to be right and not looked at; a
            wrong label then reads foreign memory. Check them once before a training loop: they
            take a pass over the labels, and on a GPU a wait.
        backend: from resolve_backend.

    Returns:
        ProbeStep; its gradient is ``out`` if that was given. A row of K logits of which one is NaN
        or infinite, or whose cross entropy does not fit in f32, has loss NaN and gradient 0, so
        that a bad sample does not destroy a head.

    Raises:
        TypeError: an argument is not an array that the backend reads, or has another dtype.
        ValueError: a shape, a label, a weight or q is out of range, or ``out`` does not fit.
        BackendUnavailable: the backend is unknown or cannot run here.

    Guarantees:
        Same backend, same bits, whatever the other rows are and however many threads run, in place
        or not. Backends agree to ``testing.TOLERANCE["probe_step"]``.
    """
    if isinstance(q_H, (list, tuple)):
        q_H = np.array(q_H, np.float64)
    _check_shapes(logits_BHK, labels_B, q_H, weights_BH, backend)
    logits, labels, q = as_plain(logits_BHK), as_plain(labels_B), as_plain(q_H)
    weights = None if weights_BH is None else as_plain(weights_BH)
    if not checked:
        _check_values(labels, q, weights, logits.shape[-1])
    gradient = None
    if out is not None:
        _check_out(out, logits_BHK, backend)
        gradient = as_plain(out)
        _check_memory(gradient, logits)
    run = implementation("probe_step", backend)
    with stream_of(logits_BHK):
        loss, gradient = run(logits, labels, q, weights, gradient)
    return ProbeStep(
        as_like(loss, logits_BHK), as_like(gradient, logits_BHK) if out is None else out
    )


def _check_shapes(logits_BHK: Any, labels_B: Any, q_H: Any, weights_BH: Any, backend: str) -> None:
    check_array("logits_BHK", logits_BHK, 3, ("bfloat16", *FLOATS), backend, torch_too=True)
    check_array("labels_B", labels_B, 1, INTEGERS, backend, torch_too=True)
    check_array("q_H", q_H, 1, ("float32", "float64"), backend, torch_too=True)
    check_same_length("logits_BHK", logits_BHK, "labels_B", labels_B)
    n_samples, n_heads, n_classes = logits_BHK.shape
    if n_heads < 1 or n_classes < 1:
        raise ValueError(
            f"logits_BHK must have at least one head and one class, found shape "
            f"{tuple(logits_BHK.shape)}; pass (samples, heads, classes)"
        )
    if len(q_H) != n_heads:
        raise ValueError(
            f"q_H has {len(q_H)} values but logits_BHK has {n_heads} heads; pass one q per head"
        )
    if weights_BH is None:
        return
    check_array("weights_BH", weights_BH, 2, ("float32",), backend, torch_too=True)
    if tuple(weights_BH.shape) != (n_samples, n_heads):
        raise ValueError(
            f"weights_BH must have shape {(n_samples, n_heads)}, found {tuple(weights_BH.shape)}; "
            "pass one weight per sample and head"
        )


def _check_values(labels: Any, q: Any, weights: Any, n_classes: int) -> None:
    check_labels("labels_B", labels, n_classes)
    # NaN is handed on by both.
    check_in_range("q_H", float(q.min()), 0.0, 1.0)
    check_in_range("q_H", float(q.max()), 0.0, 1.0)
    if weights is None:
        return
    for head in range(weights.shape[1]):
        check_finite(f"weights_BH[:, {head}]", weights[:, head], _F32_MAX)


def _check_out(out: Any, logits_BHK: Any, backend: str) -> None:
    check_array("out", out, 3, (dtype_name(logits_BHK),), backend, torch_too=True)
    if out.shape != logits_BHK.shape:
        raise ValueError(
            f"out has shape {tuple(out.shape)} but logits_BHK has {tuple(logits_BHK.shape)}; "
            "pass one of the same shape"
        )
    if is_on_gpu(out) != is_on_gpu(logits_BHK):
        raise ValueError("out and logits_BHK must lie on the same device; move one of them")


def _check_memory(gradient: Any, logits: Any) -> None:
    if not gradient.flags.c_contiguous:
        raise ValueError("out must lie in C order without gaps; pass a contiguous array")
    if not getattr(gradient.flags, "writeable", True):
        raise ValueError("out must be writeable; pass an array of your own")
    start, other = _address(gradient), _address(logits)
    # Strided logits reach further than their size; they are no place for a gradient in any part.
    if (start != other or not logits.flags.c_contiguous) and _may_overlap(gradient, logits):
        raise ValueError(
            "out overlaps with logits_BHK but does not start where they do; "
            "pass the logits themselves or other memory"
        )


def _address(array: Any) -> int:
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    return int(array.data.ptr)


def _may_overlap(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    import cupy

    return bool(cupy.may_share_memory(a, b))
