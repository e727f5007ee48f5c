"""Planted label noise with a known truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def symmetric(
    labels_N: npt.NDArray[np.int64], rate: float, n_classes: int, seed: int
) -> npt.NDArray[np.int64]:
    """Gives `rate` of the samples a label drawn uniformly from all classes.

    The usual definition: the label drawn may be the right one, so that the share of wrong labels is
    rate x (1 - 1 / n_classes) in expectation. Print the realised rate.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels_N), round(rate * len(labels_N)), replace=False)
    noisy = labels_N.copy()
    noisy[chosen] = rng.integers(0, n_classes, len(chosen))
    return noisy
