"""What the recipe `best` returns.

Shapes: N samples, K classes, F folds, M opinions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What the recipe says of every sample, and of the labels as a whole.

    Attributes:
        p_clean_N: (N,) f64, probability that the given label is right.
        margin_N: (N,) f32, P(given | x) minus the largest P(i | x) of another of the K classes,
            label unseen, in [-1, 1].
        agree_N: (N,) f32, P(given | x), label unseen.
        suggested_N: (N,) i32, the most probable of the K classes, given label and all, also where
            the image probably shows none.
        confidence_N: (N,) f32, its probability.
        neighbours_N: (N,) f32, share of the nearest neighbours with the same label as given.
        distance_N: (N,) f32, squared distance to the nearest class centre, the median is 1.
        foreign_N: (N,) f32, probability that the image shows none of the classes; 0 for all where
            the labels do not speak for there being such images.
        transition_KK: P(given = column | true = row).
        weight_M: Weight of each opinion, by the names in `opinions`.
        opinions: What the opinions are.
        log_likelihood: Of the labels held out, nats per sample, by round, and of all together.
        rate_F: (F,) estimated share of wrong labels by fold.
    """

    p_clean_N: npt.NDArray[np.float64]
    margin_N: npt.NDArray[np.float32]
    agree_N: npt.NDArray[np.float32]
    suggested_N: npt.NDArray[np.int32]
    confidence_N: npt.NDArray[np.float32]
    neighbours_N: npt.NDArray[np.float32]
    distance_N: npt.NDArray[np.float32]
    foreign_N: npt.NDArray[np.float32]
    transition_KK: npt.NDArray[np.float64]
    weight_M: npt.NDArray[np.float64]
    opinions: tuple[str, ...]
    log_likelihood: tuple[float, ...]
    rate_F: npt.NDArray[np.float64]
