"""The features on a plane: neighbours look alike, and a wrong label stands among strangers.

Shapes: N samples, P points, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardsieve.data.features import FeatureStore
from shardsieve.page.verdicts import Verdicts

_FEWEST = 12
# t-SNE's distances are taken after a projection to this many directions, as its authors advise.
_DIRECTIONS = 50
_NAMED_CLASSES = 20


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A sample of the data set on a plane.

    Attributes:
        x_P2: (P, 2) places.
        suspicion_P: (P,) 1 - p_clean.
        names: Class names with the middle of their points, where there are few classes.
        of: How many judged samples the points were drawn from.
    """

    x_P2: npt.NDArray[np.float64]
    suspicion_P: npt.NDArray[np.float64]
    names: tuple[tuple[str, float, float], ...]
    of: int


def feature_map(
    features: FeatureStore, verdicts: Verdicts, classes: tuple[str, ...], *, most: int, seed: int
) -> FeatureMap | None:
    """Lays out judged samples, drawn at random, by t-SNE over their principal components.

    Only the features of the drawn samples are read.

    Args:
        features: The cached features.
        verdicts: The scores.
        classes: K names.
        most: Points at most.
        seed: Of the draw and the layout.

    Returns:
        None when there are too few samples for a map.
    """
    judged = np.flatnonzero(verdicts.judged_N & np.isfinite(verdicts.p_clean_N))
    if min(len(judged), most) < _FEWEST:
        return None
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(judged, min(most, len(judged)), replace=False))
    x_P2 = layout(features.take(rows).astype(np.float32), seed)
    labels = verdicts.label_N[rows]
    named = np.unique(labels) if len(classes) <= _NAMED_CLASSES else np.empty(0, np.int32)
    middles = [(classes[label], *np.median(x_P2[labels == label], axis=0)) for label in named]
    names = tuple((name, float(x), float(y)) for name, x, y in middles)
    return FeatureMap(x_P2, 1 - verdicts.p_clean_N[rows], names, len(judged))


def layout(features_PD: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """Places samples on a plane by t-SNE (van der Maaten and Hinton, 2008) of their features.

    Args:
        features_PD: (P, D).
        seed: Of the projection and the layout.

    Returns:
        (P, 2) places.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    spread_D = features_PD.std(0)
    # Directions without spread are the same for all; constant features would divide by zero.
    standard = (features_PD - features_PD.mean(0)) / np.where(spread_D > 0, spread_D, 1)
    n_points, dim = standard.shape
    if not standard.any():
        return np.zeros((n_points, 2))
    directions = min(_DIRECTIONS, dim, n_points - 1)
    reduced = PCA(directions, svd_solver="randomized", random_state=seed).fit_transform(standard)
    if directions < 2:
        return np.pad(reduced.astype(np.float64), ((0, 0), (0, 1)))[:, :2]
    layout = TSNE(
        perplexity=min(30.0, (n_points - 1) / 3),
        init=(reduced[:, :2] / max(reduced[:, 0].std(), 1e-12) * 1e-4).astype(np.float32),
        max_iter=500,
        random_state=seed,
    )
    placed: npt.NDArray[np.float64] = layout.fit_transform(reduced).astype(np.float64)
    return placed
