"""A two-component Gaussian mixture over the losses of each class, and who is clean under it.

Shapes: N samples, K classes, 2 components: 0 is clean (the lower mean), 1 is noisy.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np

from shardsieve_kernels._arrays import as_plain
from shardsieve_kernels._backend import Backend, implementation
from shardsieve_kernels._checks import (
    FLOATS,
    INTEGERS,
    check_array,
    check_at_least,
    check_choice,
    check_finite,
    check_labels,
    check_same_length,
)

if TYPE_CHECKING:
    from shardsieve_kernels.class_gmm.estimator import ClassGaussianMixture

__all__ = [
    "PRESETS",
    "ClassGaussianMixture",
    "ClassStatus",
    "EmSettings",
    "GmmFit",
    "Preset",
    "class_gmm",
    "mixture_p_clean",
]

Preset = Literal["converged", "sklearn-compatible"]


def __getattr__(name: str) -> Any:
    # The estimator needs scikit-learn, which takes a second to import and the op does not use.
    if name == "ClassGaussianMixture":
        from shardsieve_kernels.class_gmm.estimator import ClassGaussianMixture

        return ClassGaussianMixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Squares of larger losses would come near the end of float64.
LOSS_LIMIT = 1e100


class ClassStatus(IntEnum):
    """What became of a class."""

    FITTED = 0
    EMPTY = 1
    """No sample has this label."""
    TOO_FEW = 2
    """Fewer than min_samples samples."""
    EQUAL = 3
    """All losses are equal, up to 1e-6 of the largest."""
    COLLAPSED = 4
    """A component ended with fewer than max(2, 0.005 n) of the n samples."""


class EmSettings(NamedTuple):
    """The numbers that make a preset; all of them are part of the method."""

    standardise: bool
    """Fit in units of the class's standard deviation, so that the unit of the losses is no matter.
    The variances and step below are then in these units, else in the caller's."""
    variance_added: float
    """Added to every variance in the M step; if standardise, in squares of the class's range."""
    variance_floor: float
    """Smallest variance."""
    accelerate: bool
    """Safeguarded SQUAREM, stopped by both numbers below; else plain EM, stopped by the first."""
    likelihood_stop: float
    """Stop when the mean log-likelihood changes by less."""
    step_stop: float
    """and no parameter (mean, log variance, log odds of the weights) changes by more."""
    max_iter: int
    """Most EM maps."""
    monotone: bool
    """Never let a posterior rise with the loss."""


PRESETS: dict[str, EmSettings] = {
    "converged": EmSettings(True, 0.0, 1e-6, True, 1e-10, 1e-8, 500, True),
    "sklearn-compatible": EmSettings(False, 1e-6, 0.0, False, 1e-3, 0.0, 100, False),
}


class GmmFit(NamedTuple):
    """One mixture per class, and the posterior of each sample; NaN for a class not fitted."""

    p_clean_N: np.ndarray
    """(N,) f64 in [0, 1]: posterior of component 0; 1 for samples of a class not fitted."""
    weights_K2: np.ndarray
    """(K, 2) f64: share of each component."""
    means_K2: np.ndarray
    """(K, 2) f64, unit of the losses (nats)."""
    variances_K2: np.ndarray
    """(K, 2) f64, square of that unit."""
    log_likelihood_K: np.ndarray
    """(K,) f64, nats: mean log density of the class's losses under its mixture."""
    bic_gain_K: np.ndarray
    """(K,) f64: BIC of one Gaussian minus BIC of the mixture; positive prefers the mixture."""
    separation_K: np.ndarray
    """(K,) f64: Ashman's D, |m1 - m0| sqrt(2) / sqrt(v0 + v1); above 2 is clearly two modes."""
    n_iter_K: np.ndarray
    """(K,) i32: EM maps done; 0 for a class that was not tried."""
    converged_K: np.ndarray
    """(K,) bool: the stop rule was met before max_iter maps."""
    status_K: np.ndarray
    """(K,) u8: ClassStatus."""


def class_gmm(
    losses_N: Any,
    labels_N: Any,
    n_classes: int,
    *,
    preset: Preset = "converged",
    min_samples: int = 20,
    reg_covar: float | None = None,
    backend: Backend,
) -> GmmFit:
    """Fit a two-component Gaussian mixture to the losses of each class.

    EM starts from the exact two-means split of the sorted losses, so nothing is random. Preset
    "converged" runs EM, sped up by SQUAREM (Varadhan and Roland 2008, scheme S3) with every jump
    undone that lowers the likelihood, until it stands still. "sklearn-compatible" stops where
    ``sklearn.mixture.GaussianMixture(2)`` with its defaults stops, from the same start.

    Args:
        losses_N: (N,) f16, f32 or f64, finite, any unit (nats for cross entropy). An array of
            NumPy, CuPy or torch, or one that follows ``__array_interface__``,
            ``__cuda_array_interface__`` or DLPack; none is copied to be read.
        labels_N: (N,) i32 or i64 in [0, n_classes), such an array as well.
        n_classes: K, at least 1.
        preset: see above; PRESETS holds the numbers.
        min_samples: classes with fewer samples are not fitted; at least 2.
        reg_covar: added to every variance, None for the preset's. "converged" takes it as a share
            of the squared range of a class's losses, as if they had been scaled to [0, 1];
            "sklearn-compatible" in the square of their unit, as scikit-learn does.
        backend: from resolve_backend.

    Returns:
        GmmFit. Whether a class not fitted, or fitted with a low separation or BIC gain, is judged
        in another way is for the caller to decide. With backend "gpu" the fields are CuPy arrays
        if an argument is on a GPU, else they are NumPy's.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: a shape, label, loss, the preset or a count is out of range.
        BackendUnavailable: the backend is unknown or cannot run here.

    Guarantees:
        The order of the samples changes no bit of a class's fit or a sample's posterior. Same
        backend, same bits. Backends agree to ``testing.TOLERANCE["class_gmm"]``.
    """
    losses_N, labels_N = as_plain(losses_N), as_plain(labels_N)
    check_array("losses_N", losses_N, 1, FLOATS, backend)
    check_array("labels_N", labels_N, 1, INTEGERS, backend)
    check_same_length("losses_N", losses_N, "labels_N", labels_N)
    check_at_least("n_classes", n_classes, 1)
    check_labels("labels_N", labels_N, n_classes)
    check_finite("losses_N", losses_N, LOSS_LIMIT)
    check_choice("preset", preset, get_args(Preset))
    check_at_least("min_samples", min_samples, 2)
    settings = PRESETS[preset]
    if reg_covar is not None:
        if not 0 <= reg_covar < np.inf:
            raise ValueError(f"reg_covar must be a finite number of at least 0, found {reg_covar}")
        settings = settings._replace(variance_added=float(reg_covar))
    run = implementation("class_gmm", backend)
    return cast("GmmFit", run(losses_N, labels_N, n_classes, settings, min_samples))


def mixture_p_clean(
    losses_N: np.ndarray,
    weights_2: np.ndarray,
    means_2: np.ndarray,
    variances_2: np.ndarray,
    *,
    monotone: bool = True,
) -> np.ndarray:
    """Evaluate one fitted mixture on any losses.

    Args:
        losses_N: (N,) f16, f32 or f64, finite.
        weights_2: (2,) f64, each above 0, as in a row of GmmFit.weights_K2.
        means_2: (2,) f64, unit of the losses; entry 0 is the clean component.
        variances_2: (2,) f64, square of that unit, each above 0.
        monotone: never let the posterior rise with the loss, as preset "converged" does.

    Returns:
        (N,) f64 in [0, 1]: the posterior of component 0.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: a shape or value is out of range, as it is for a class that was not fitted.
    """
    from shardsieve_kernels.class_gmm.reference import Mixture, posterior

    check_array("losses_N", losses_N, 1, FLOATS, "reference")
    check_finite("losses_N", losses_N, LOSS_LIMIT)
    for name, pair in (("weights_2", weights_2), ("variances_2", variances_2)):
        if np.shape(pair) != (2,) or not np.all((pair > 0) & (pair < np.inf)):
            raise ValueError(
                f"{name} must be two finite numbers above 0, found {pair}; pass a fitted class"
            )
    if np.shape(means_2) != (2,) or not np.all(np.isfinite(means_2)):
        raise ValueError(
            f"means_2 must be two finite numbers, found {means_2}; pass a fitted class"
        )
    mixture = Mixture(*(np.asarray(a, np.float64) for a in (weights_2, means_2, variances_2)))
    return posterior(losses_N.astype(np.float64), mixture, monotone)
