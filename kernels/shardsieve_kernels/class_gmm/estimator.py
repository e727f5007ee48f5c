"""class_gmm as an estimator that follows the conventions of scikit-learn and cuML.

Shapes: N samples, K classes, 2 components: 0 is clean (the lower mean), 1 is noisy.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from shardsieve_kernels._arrays import as_like, as_plain
from shardsieve_kernels._backend import resolve_backend
from shardsieve_kernels._checks import (
    FLOATS,
    INTEGERS,
    check_array,
    check_finite,
    check_same_length,
)
from shardsieve_kernels._cuda import is_cupy
from shardsieve_kernels.class_gmm import LOSS_LIMIT, Preset, class_gmm

__all__ = ["ClassGaussianMixture"]


class ClassGaussianMixture(BaseEstimator):  # type: ignore[misc]
    """A two-component Gaussian mixture over the losses of the samples of each class.

    All arrays may be NumPy's, CuPy's or torch's (on the CPU or a CUDA device), or follow
    ``__array_interface__``, ``__cuda_array_interface__`` or DLPack. None is copied on the way in,
    and what comes back is torch's if the losses were, else CuPy's if they were on a GPU.

    Args:
        preset: "converged" or "sklearn-compatible", see ``class_gmm``.
        min_samples: classes with fewer samples are not fitted; at least 2.
        reg_covar: added to every variance, None for the preset's, see ``class_gmm``.
        backend: "auto", "reference", "cpu" or "gpu". "auto" takes the GPU where there is one.

    Attributes:
        classes_: (K,) the labels that occur, sorted, NumPy; the rows of what follows.
        weights_: (K, 2) f64, share of each component; NaN for a class not fitted.
        means_: (K, 2) f64, unit of the losses; component 0 has the lower mean.
        variances_: (K, 2) f64, square of that unit.
        converged_: (K,) bool, the stop rule was met.
        n_iter_: (K,) i32, EM maps done.
        status_: (K,) u8, ``ClassStatus``.
        bic_gain_: (K,) f64, BIC of one Gaussian minus that of the mixture.
        separation_: (K,) f64, Ashman's D of the two components.
        backend_: the backend that ran.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> losses = np.concatenate([rng.normal(0.3, 0.1, 80), rng.normal(4.0, 0.5, 20)])
        >>> labels = np.zeros(100, dtype=np.int64)
        >>> mixture = ClassGaussianMixture(backend="cpu").fit(losses, labels)
        >>> int(mixture.predict(losses, labels).sum())
        20
    """

    def __init__(
        self,
        *,
        preset: Preset = "converged",
        min_samples: int = 20,
        reg_covar: float | None = None,
        backend: str = "auto",
    ) -> None:
        self.preset = preset
        self.min_samples = min_samples
        self.reg_covar = reg_covar
        self.backend = backend

    def fit(self, losses: Any, labels: Any) -> Self:
        """Fit a mixture to each class.

        Args:
            losses: (N,) f16, f32 or f64, finite.
            labels: (N,) i32 or i64, any values: each that occurs is a class.

        Returns:
            The estimator itself.

        Raises:
            TypeError: an argument is no array, has another dtype, or lies where the backend does
                not read.
            ValueError: shapes differ, there is no sample, or a loss is not finite.
            BackendUnavailable: the backend is unknown or cannot run here.
        """
        backend = resolve_backend(self.backend)
        losses_N, labels_N = _checked(losses, labels, backend)
        if len(losses_N) == 0:
            raise ValueError("losses must hold at least one sample, found none; pass some")
        classes_K, rows_N = _classes(labels_N)
        fit = class_gmm(
            losses_N,
            rows_N,
            len(classes_K),
            preset=self.preset,
            min_samples=self.min_samples,
            reg_covar=self.reg_covar,
            backend=backend,
        )
        self.classes_ = classes_K if isinstance(classes_K, np.ndarray) else classes_K.get()
        self.weights_ = as_like(fit.weights_K2, losses)
        self.means_ = as_like(fit.means_K2, losses)
        self.variances_ = as_like(fit.variances_K2, losses)
        self.converged_ = as_like(fit.converged_K, losses)
        self.n_iter_ = as_like(fit.n_iter_K, losses)
        self.status_ = as_like(fit.status_K, losses)
        self.bic_gain_ = as_like(fit.bic_gain_K, losses)
        self.separation_ = as_like(fit.separation_K, losses)
        self.backend_ = backend
        return self

    def predict_proba(self, losses: Any, labels: Any) -> Any:
        """Posterior of each component for samples of the fitted classes.

        Args:
            losses: (N,) f16, f32 or f64, finite.
            labels: (N,) i32 or i64, each one of ``classes_``.

        Returns:
            (N, 2) f64, rows add up to 1; [1, 0] for a class that was not fitted. In preset
            "converged" column 0 never rises with the loss.

        Raises:
            NotFittedError: ``fit`` was not called.
            TypeError: as in ``fit``.
            ValueError: as in ``fit``, or a label did not occur there.
        """
        p_clean_N = self._p_clean(losses, labels)
        both_N2 = _module(p_clean_N).empty((len(p_clean_N), 2))
        both_N2[:, 0] = p_clean_N
        both_N2[:, 1] = 1.0 - p_clean_N
        return as_like(both_N2, losses)

    def predict(self, losses: Any, labels: Any) -> Any:
        """The likelier component of each sample.

        Args:
            losses: as in ``predict_proba``.
            labels: as in ``predict_proba``.

        Returns:
            (N,) i64: 0 for clean, 1 for noisy; 0 where both are as likely.

        Raises:
            NotFittedError, TypeError, ValueError: as in ``predict_proba``.
        """
        return as_like((self._p_clean(losses, labels) < 0.5).astype(np.int64), losses)

    def fit_predict(self, losses: Any, labels: Any) -> Any:
        """Fit, then tell the likelier component of the same samples.

        Args:
            losses: as in ``fit``.
            labels: as in ``fit``.

        Returns:
            As ``predict``.
        """
        return self.fit(losses, labels).predict(losses, labels)

    def _p_clean(self, losses: Any, labels: Any) -> Any:
        if not hasattr(self, "classes_"):
            raise NotFittedError("this ClassGaussianMixture has no mixtures yet; call fit first")
        losses_N, labels_N = _checked(losses, labels, self.backend_)
        xp = _module(losses_N, labels_N)
        losses_N, labels_N = xp.asarray(losses_N), xp.asarray(labels_N)
        classes_K = xp.asarray(self.classes_)
        rows_N = xp.searchsorted(classes_K, labels_N).clip(0, len(classes_K) - 1)
        unknown_N = classes_K[rows_N] != labels_N
        if unknown_N.any():
            row = int(unknown_N.argmax())
            raise ValueError(
                f"labels must be among the {len(classes_K)} fitted classes, found "
                f"{int(labels_N[row])} at row {row}; fit with samples of that class"
            )
        return _posterior(xp, losses_N, rows_N, self._mixtures(xp), self.preset == "converged")

    def _mixtures(self, xp: Any) -> tuple[Any, ...]:
        """Weights, means and variances (2, K) where xp reads; a class not fitted is all clean."""
        parts = (as_plain(part) for part in (self.weights_, self.means_, self.variances_))
        local = (part if xp is not np or not is_cupy(part) else part.get() for part in parts)
        weights_2K, means_2K, variances_2K = (xp.asarray(part).T for part in local)
        lost_K = xp.isnan(weights_2K[0])
        everything = (xp.array([1.0, 0.0]), xp.zeros(2), xp.ones(2))
        return tuple(
            xp.where(lost_K, value_2[:, None], part_2K)
            for part_2K, value_2 in zip(
                (weights_2K, means_2K, variances_2K), everything, strict=True
            )
        )


def _classes(labels_N: Any) -> tuple[Any, Any]:
    """The labels that occur, sorted, and the place of each sample's among them."""
    xp = _module(labels_N)
    low, high = int(labels_N.min()), int(labels_N.max())
    if high - low > 2 * len(labels_N) + 1000:
        classes_K, rows_N = xp.unique(labels_N, return_inverse=True)
        return classes_K, rows_N.astype(np.int64, copy=False)
    # Labels are class numbers nearly always, and counting them is many times faster than sorting.
    seen_R = xp.bincount(labels_N if low == 0 else labels_N - low) > 0
    classes_K = xp.flatnonzero(seen_R) + low
    if low == 0 and len(classes_K) == high + 1:
        return classes_K, labels_N
    return classes_K, (xp.cumsum(seen_R) - 1)[labels_N - low]


def _posterior(
    xp: Any, losses_N: Any, rows_N: Any, mixtures: tuple[Any, ...], monotone: bool
) -> Any:
    """Posterior of component 0, (N,) f64: reference.posterior, with a mixture for each row."""
    weights_2K, (m0, m1), (v0, v1) = mixtures
    x_N = losses_N.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_K = (m0 * v1 - m1 * v0) / (v1 - v0)
        constant_K = xp.log(weights_2K[0] / weights_2K[1]) - 0.5 * xp.log(v0 / v1)
    if monotone:
        x_N = xp.maximum(x_N, xp.where(v1 > v0, vertex_K, -np.inf)[rows_N])
        x_N = xp.minimum(x_N, xp.where(v1 < v0, vertex_K, np.inf)[rows_N])
    odds_N = (
        constant_K[rows_N]
        - (x_N - m0[rows_N]) ** 2 / (2 * v0)[rows_N]
        + (x_N - m1[rows_N]) ** 2 / (2 * v1)[rows_N]
    )
    small_N = xp.exp(-xp.abs(odds_N))
    return xp.where(odds_N >= 0, 1.0, small_N) / (1.0 + small_N)


def _checked(losses: Any, labels: Any, backend: str) -> tuple[Any, Any]:
    losses_N, labels_N = as_plain(losses), as_plain(labels)
    check_array("losses", losses_N, 1, FLOATS, backend)
    check_array("labels", labels_N, 1, INTEGERS, backend)
    check_same_length("losses", losses_N, "labels", labels_N)
    check_finite("losses", losses_N, LOSS_LIMIT)
    return losses_N, labels_N


def _module(*arrays: Any) -> Any:
    """CuPy if one of the arrays is its, else NumPy."""
    if any(is_cupy(array) for array in arrays):
        import cupy

        return cupy
    return np
