"""Linear discriminants from class sums: a classifier whose training is one pass and no steps.

A fold is left out by subtracting its sums, so that leaving out any one or two of F folds costs no
further pass over the data.

Shapes: F folds, M classifiers, N samples, K classes, d axes, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardsieve.selection.projection import View

Floats = npt.NDArray[np.float32]
# Share of the variance that may lie between the classes; 1 would leave nothing within them.
_MOST_BETWEEN = 0.98
_TINY = 1e-6


@dataclass(slots=True)
class ClassSums:
    """Sums that M classifiers are made of, by fold.

    Attributes:
        sum_MFKd: f64, sum of the samples, weighted by the responsibility of each class.
        count_MFK: f64, sum of the responsibilities.
    """

    sum_MFKd: npt.NDArray[np.float64]
    count_MFK: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, n_models: int, n_folds: int, n_classes: int, dim: int) -> ClassSums:
        """Returns sums of nothing."""
        return cls(
            np.zeros((n_models, n_folds, n_classes, dim)), np.zeros((n_models, n_folds, n_classes))
        )

    def add(self, fold: int, points_Bd: Floats, weight_BMK: npt.NDArray[np.floating]) -> None:
        """Adds samples of one fold to all M classifiers."""
        n_rows, n_models, n_classes = weight_BMK.shape
        flat = weight_BMK.reshape(n_rows, -1).astype(np.float32)
        self.sum_MFKd[:, fold] += (flat.T @ points_Bd).reshape(n_models, n_classes, -1)
        self.count_MFK[:, fold] += weight_BMK.sum(0)

    def without(self, model: int, *folds: int) -> tuple[Floats, npt.NDArray[np.float64]]:
        """Returns (K, d) class means and (K,) class shares over all folds but some."""
        left = [f for f in range(self.count_MFK.shape[1]) if f not in folds]
        count_K = self.count_MFK[model, left].sum(0)
        total_Kd = self.sum_MFKd[model, left].sum(0)
        # A class with no sample left gets the mean of all and no share of them.
        mean_d = total_Kd.sum(0) / max(count_K.sum(), _TINY)
        means_Kd = (total_Kd + _TINY * mean_d) / (count_K + _TINY)[:, None]
        return means_Kd.astype(np.float32), count_K / max(count_K.sum(), _TINY)


@dataclass(frozen=True, slots=True)
class Classifier:
    """One linear classifier per view.

    Attributes:
        weight_V: (K, d_v) f32 each.
        bias_VK: f32.
        means_Kd: f32, centres of the classes.
    """

    weight_V: tuple[Floats, ...]
    bias_VK: Floats
    means_Kd: Floats

    def logits(self, points_Bd: Floats) -> Floats:
        """Returns (V, B, K) f32."""
        parts = [points_Bd[:, : weight.shape[1]] @ weight.T for weight in self.weight_V]
        return np.stack(parts) + self.bias_VK[:, None, :]


def discriminant(
    means_Kd: Floats, share_K: npt.NDArray[np.float64], views: tuple[View, ...]
) -> Classifier:
    """Makes the classifiers of class means.

    With points scaled to unit variance (see `projection`), the covariance within the classes is
    I - U'U, U = sqrt(share) x (mean - overall mean), and its inverse I + U'(I - UU')^-1 U
    (Woodbury): K x K instead of d x d. The logit of class k is x'W m_k - m_k'W m_k / 2 + log share.

    Args:
        means_Kd: Class means.
        share_K: Class shares, summing to 1.
        views: Which axes each classifier sees, and their scale.
    """
    log_share_K = np.log(np.maximum(share_K, _TINY))
    weights, biases = [], []
    for view in views:
        means = means_Kd[:, : len(view)] * view.scale_d.astype(np.float64)
        between = np.sqrt(share_K)[:, None] * (means - share_K @ means)
        value_K, vector_KK = np.linalg.eigh(between @ between.T)
        shrunk_K = np.sqrt(np.minimum(1, _MOST_BETWEEN / np.maximum(value_K, _TINY)))
        between = vector_KK @ (shrunk_K[:, None] * (vector_KK.T @ between))
        gram_KK = np.eye(len(means)) - between @ between.T
        weight_Kd = means + (means @ between.T) @ np.linalg.solve(gram_KK, between)
        biases.append(log_share_K - 0.5 * np.einsum("kd,kd->k", means, weight_Kd))
        weights.append((weight_Kd * view.scale_d).astype(np.float32))
    return Classifier(tuple(weights), np.stack(biases).astype(np.float32), means_Kd)
