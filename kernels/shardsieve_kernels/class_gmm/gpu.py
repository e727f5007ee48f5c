"""class_gmm with CUDA: one sort, then one launch in which a block per class fits it to the end."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from shardsieve_kernels._cuda import cuda_function, like_inputs
from shardsieve_kernels.class_gmm import EmSettings, GmmFit


def threads_per_class(n_samples: int, n_classes: int) -> int:
    """Choose the size of a block by the mean size of a class; it moves no bit of the results."""
    mean = n_samples / n_classes
    return 64 if mean < 512 else 256 if mean < 16_384 else 512


def class_gmm(
    losses_N: Any, labels_N: Any, n_classes: int, settings: EmSettings, min_samples: int
) -> GmmFit:
    """See `shardsieve_kernels.class_gmm.class_gmm`; checks nothing."""
    inputs = (losses_N, labels_N)
    losses_N = cp.asarray(losses_N)
    dtype = cp.float64 if losses_N.dtype == cp.float64 else cp.float32
    losses_N = cp.ascontiguousarray(losses_N, dtype=dtype)
    labels_N = cp.ascontiguousarray(cp.asarray(labels_N), dtype=cp.int32)
    sorted_N, starts_K1 = _grouped(losses_N, labels_N, n_classes)
    # The largest class first: a slow one does not start last.
    turn_K = cp.argsort(-cp.diff(starts_K1)).astype(cp.int32)

    mixture_K6 = cp.empty((n_classes, 6))
    scores_K3 = cp.empty((n_classes, 3))
    curves_K7 = cp.empty((n_classes, 7))
    n_iter_K = cp.empty(n_classes, cp.int32)
    converged_K = cp.empty(n_classes, cp.bool_)
    status_K = cp.empty(n_classes, cp.uint8)
    n_samples = len(losses_N)
    cuda_function("class_gmm", "class_gmm_fit")(
        (n_classes,),
        (threads_per_class(n_samples, n_classes),),
        (
            *(sorted_N, starts_K1, turn_K, *_scalars(settings, min_samples)),
            *(cp.empty(n_samples), cp.empty(n_samples, cp.int32)),
            *(mixture_K6, scores_K3, curves_K7, n_iter_K, converged_K, status_K),
        ),
    )
    p_clean_N = cp.empty(n_samples)
    _launch(
        f"class_gmm_posterior_{losses_N.dtype}",
        n_samples,
        (losses_N, labels_N, np.int64(n_samples), curves_K7, p_clean_N),
    )
    columns = (
        *(p_clean_N, *(mixture_K6[:, i : i + 2].copy() for i in (0, 2, 4))),
        *(scores_K3[:, i].copy() for i in range(3)),
        *(n_iter_K, converged_K, status_K),
    )
    return GmmFit(*like_inputs(inputs, columns))


def _grouped(losses_N: Any, labels_N: Any, n_classes: int) -> tuple[Any, Any]:
    """Return the losses by class, then by size, in f64; and the first row of each class."""
    n_samples = len(losses_N)
    if n_samples == 0:
        return cp.empty(0), cp.zeros(n_classes + 1, cp.int64)
    classes_K1 = cp.arange(n_classes + 1, dtype=cp.int64)
    if losses_N.dtype == cp.float64:
        by_loss_N = cp.argsort(losses_N)
        # cp.argsort is stable: equal labels stay in the order of their losses.
        order_N = by_loss_N[cp.argsort(labels_N[by_loss_N])]
        return losses_N[order_N], cp.searchsorted(labels_N[order_N], classes_K1)
    # A class and an f32 loss fit in one key, which is sorted by its digits.
    keys_N = cp.empty(n_samples, cp.uint64)
    _launch("class_gmm_keys", n_samples, (losses_N, labels_N, np.int64(n_samples), keys_N))
    keys_N.sort()
    sorted_N = cp.empty(n_samples)
    _launch("class_gmm_losses", n_samples, (keys_N, np.int64(n_samples), sorted_N))
    return sorted_N, cp.searchsorted(keys_N, classes_K1.astype(cp.uint64) << np.uint64(32))


def _scalars(settings: EmSettings, min_samples: int) -> tuple[Any, ...]:
    """The settings as the kernel takes them."""
    flags = (settings.standardise, settings.accelerate, settings.monotone)
    numbers = (settings.variance_added, settings.variance_floor)
    stops = (settings.likelihood_stop, settings.step_stop)
    return (
        *(np.int32(value) for value in (*flags, min_samples, settings.max_iter)),
        *(np.float64(value) for value in (*numbers, *stops)),
    )


def _launch(name: str, n_samples: int, arguments: tuple[Any, ...]) -> None:
    if n_samples:
        cuda_function("class_gmm", name)((min(-(-n_samples // 256), 4096),), (256,), arguments)
