"""Images that show none of the classes.

An image of a foreign kind has to be labelled as something. Where such labels follow no rule, the
labels about it are as mixed as those of the whole data, more than wrong labels make those about an
image of any class.

Shapes: B samples, N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import expit

# Share of foreign images to begin with; how much the neighbours' labels count, which are not
# independent of each other.
_SHARE, _COUNTED = 0.03, 0.5
_LEAST = 1e-6


def odds_of_one_vote(
    transition_KK: npt.NDArray[np.float64], given_K: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """What one neighbour's label says for foreign images, against each class.

    Args:
        transition_KK: P(given = column | true = row).
        given_K: How often each label is given, as a share.

    Returns:
        (K, K) log odds by given label (row) and class (column).
    """
    foreign_K = np.log(np.maximum(given_K, _LEAST))
    odds_KK: npt.NDArray[np.float64] = foreign_K - np.log(np.maximum(transition_KK, _LEAST))
    return odds_KK.T


def first_guess(votes_BK: csr_array, odds_KK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Guesses how probable it is that an image is foreign, from the labels of its neighbours.

    Args:
        votes_BK: How many of the neighbours were given each label.
        odds_KK: See `odds_of_one_vote`.

    Returns:
        (B,) probability: all neighbours foreign, against all of the class that explains their
        labels best.
    """
    odds_B = _COUNTED * (votes_BK @ odds_KK).min(1) + np.log(_SHARE / (1 - _SHARE))
    return np.asarray(expit(odds_B))


def unlike_any(
    out_of_class_N: npt.NDArray[np.float32], above: float
) -> tuple[dict[str, float | int], list[str]]:
    """Counts the samples with a probability above, for the record and in a sentence."""
    count = int(np.count_nonzero(out_of_class_N > above))
    facts = {"above": above, "samples": count}
    if not count:
        return facts, []
    return facts, [
        f"{count:,} samples probably show none of the classes (column out_of_class above {above:g})"
    ]
