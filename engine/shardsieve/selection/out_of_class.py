"""Images that may show none of the classes.

An image of a foreign kind has to be labelled as something. Where such labels follow no rule, the
classifiers learn none: what they say of the image is spread over many classes, and the label is a
surprise. An image of two classes that are alike is spread over two; a wrong label on a clear image
is a surprise only.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def out_of_class(
    agree_N: npt.NDArray[np.floating], margin_N: npt.NDArray[np.floating], n_classes: int
) -> npt.NDArray[np.float32]:
    """Scores how little an image looks like any class.

    The mean of two shares: -log(largest P(i | x)) / log K, which is 1 where all classes are
    equally probable, and -log(P(given | x) + K^-2) / (2 log K), which is 1/2 for a label that is as
    probable as any, and 1 where it is out of the question.

    Args:
        agree_N: (N,) P(given | x), the label unseen.
        margin_N: (N,) that minus the largest P(i | x) of another class.
        n_classes: K.

    Returns:
        (N,) f32 in [0, 1]; 0 for a single class.
    """
    if n_classes < 2:
        return np.zeros(len(agree_N), np.float32)
    given_N = agree_N.astype(np.float64)
    largest_N = np.clip(np.maximum(given_N, given_N - margin_N), 1 / n_classes, 1)
    spread_N = -np.log(largest_N) / np.log(n_classes)
    surprise_N = -np.log(np.maximum(given_N, 0) + n_classes**-2.0) / (2 * np.log(n_classes))
    return ((spread_N + np.clip(surprise_N, 0, 1)) / 2).astype(np.float32)


def unlike_any(
    out_of_class_N: npt.NDArray[np.float32], above: float
) -> tuple[dict[str, float | int], list[str]]:
    """Counts the samples whose score is above a threshold, for the record and in a sentence."""
    count = int(np.count_nonzero(out_of_class_N > above))
    facts = {"above": above, "samples": count}
    if not count:
        return facts, []
    return facts, [
        f"{count:,} samples may belong to none of the classes (column out_of_class above {above:g})"
    ]
