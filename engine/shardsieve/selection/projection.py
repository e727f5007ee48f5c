"""Principal axes of the features, scaled so that a linear discriminant is a plain scalar product.

The labels play no part here: the axes of all folds are the same, and what is held out stays so.

Shapes: N samples, S of them in the sample, D features, d axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardsieve.selection.blas_threads import threads_for

# Added to every variance before scaling, as a share of the mean variance of the axes kept: what
# regularises the discriminant. The few first axes need less than all of them (measured).
_SHRINK_FEW, _SHRINK_MANY = 0.3, 1.0
FEW_AXES, MOST_AXES = 64, 640


@dataclass(frozen=True, slots=True)
class View:
    """The first axes of the projection, scaled in a way of its own.

    Attributes:
        scale_d: f32, multiplied; its length says how many axes belong to the view.
    """

    scale_d: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scale_d)


@dataclass(frozen=True, slots=True)
class Projection:
    """Maps features to scaled principal axes.

    Attributes:
        mean_D: f32, subtracted first.
        axes_Dd: f32.
        views: The sets of axes that classifiers are made on.
    """

    mean_D: npt.NDArray[np.float32]
    axes_Dd: npt.NDArray[np.float32]
    views: tuple[View, ...]

    def apply(self, features_BD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Returns (B, d) f32."""
        centred: npt.NDArray[np.float32] = features_BD.astype(np.float32) - self.mean_D
        return centred @ self.axes_Dd


def fit_projection(features_SD: npt.NDArray[np.floating]) -> Projection:
    """Finds the axes of a sample of the features.

    Two views: the 64 axes with the largest variance, which is what carries the classes when nearly
    every label is wrong, and up to 640 of them, which tell classes apart more finely. An axis of
    variance v is divided by sqrt(v + s), s a share of the mean variance: linear discriminant
    analysis with its covariance shrunk towards the identity (Friedman 1989), up to the part that
    lies between the classes, which `discriminant` takes out.

    Args:
        features_SD: (S, D) finite features; some 50,000 are enough.
    """
    sample = features_SD.astype(np.float32)
    mean_D = sample.mean(0)
    sample -= mean_D
    covariance_DD = (sample.T @ sample).astype(np.float64) / len(sample)
    with threads_for(len(covariance_DD) ** 3):
        variance, axes = np.linalg.eigh(covariance_DD)
    order = np.argsort(variance)[::-1][:MOST_AXES]
    variance, axes = np.maximum(variance[order], 0), axes[:, order]
    many_d = _scale(variance, _SHRINK_MANY)
    views = [View(np.ones(len(variance), np.float32))]
    if len(variance) > FEW_AXES:
        few_d = _scale(variance[:FEW_AXES], _SHRINK_FEW) / many_d[:FEW_AXES]
        views.insert(0, View(few_d.astype(np.float32)))
    return Projection(mean_D, (axes * many_d).astype(np.float32), tuple(views))


def _scale(variance_d: npt.NDArray[np.float64], shrink: float) -> npt.NDArray[np.float64]:
    floor = shrink * float(variance_d.mean())
    # Features that do not vary at all stay at zero instead of being divided by it.
    return 1 / np.sqrt(variance_d + max(floor, float(np.finfo(np.float32).tiny)))
