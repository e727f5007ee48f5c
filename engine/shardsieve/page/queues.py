"""Which samples deserve a look, and in which order.

Shapes: N samples, R rows of a queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.page.verdicts import Verdicts, in_group

# A posterior nearer to tau than this could have come out on the other side.
_BORDER = 0.2
# Columns that a recipe may add to the scores.
_SUGGESTED = "suggested_label"
_CONFIDENCE = "suggestion_confidence"
_DUPLICATE, _NEAR = "duplicate_of", "near_duplicate_of"
_NO_CLASS = "out_of_class"
_LEAK, _LEAK_LABEL = "leak_of", "leak_label"


@dataclass(frozen=True, slots=True)
class Queue:
    """A gallery.

    Attributes:
        name: In addresses and files.
        title: For people.
        explanation: One sentence on what is in it and in which order.
        rows_R: (R,) rows of the scores, the most interesting first.
    """

    name: str
    title: str
    explanation: str
    rows_R: npt.NDArray[np.int64]


def queues(scores: pa.Table, verdicts: Verdicts, tau: float, no_class: float = 1.0) -> list[Queue]:
    """Returns the galleries that this run has something for.

    Ties fall to the earlier row, so that the order is the same every time.

    Args:
        scores: A row per sample.
        verdicts: The same as arrays.
        tau: The threshold of the run.
        no_class: That of `out_of_class`.
    """
    made = [
        Queue(
            "suspicious",
            "Most suspicious",
            "Removed samples: the lowest p_clean first, then the highest loss.",
            suspicious(verdicts),
        ),
        Queue(
            "borderline",
            "Borderline",
            f"Samples whose p_clean is within {_BORDER:g} of tau, the nearest first: "
            "a slightly other threshold decides differently.",
            _borderline(verdicts, tau),
        ),
        _suggested(scores, verdicts),
        *_no_class(scores, no_class),
        *_duplicates(scores, verdicts),
        *_leaks(scores, verdicts),
        Queue(
            "quarantined",
            "Quarantined",
            "Samples without a usable image or label, in the order of the shards. "
            "They are never kept.",
            np.flatnonzero(in_group(scores, "unreadable").to_numpy()),
        ),
    ]
    return [queue for queue in made if len(queue.rows_R)]


def spread(
    rows_R: npt.NDArray[np.int64], labels_R: npt.NDArray[np.int32], most: int
) -> npt.NDArray[np.int64]:
    """Picks from an ordered queue so that one bad class does not hide the others.

    No class gives more than its share, which is the smallest number that fills the gallery when no
    class gives more.

    Args:
        rows_R: (R,) rows, the most interesting first.
        labels_R: (R,) their classes, -1 for none.
        most: How many to pick.

    Returns:
        At most `most` of the rows, in their order.
    """
    _, classes_R = np.unique(labels_R, return_inverse=True)
    counts_K = np.bincount(classes_R, minlength=1)
    share = _fair_share(counts_K, most)
    # Position of each row among those of its class.
    by_class = np.argsort(classes_R, kind="stable")
    starts_K = np.cumsum(counts_K) - counts_K
    rank_R = np.empty(len(rows_R), np.int64)
    rank_R[by_class] = np.arange(len(rows_R)) - starts_K[classes_R[by_class]]
    # The last round may be longer than what is left of the gallery: the first of it go in.
    chosen_R = rank_R < share - 1
    last = np.flatnonzero(rank_R == share - 1)
    chosen_R[last[: most - int(chosen_R.sum())]] = True
    return rows_R[chosen_R]


def _fair_share(counts_K: npt.NDArray[np.int64], most: int) -> int:
    wanted = min(most, int(counts_K.sum()))
    low, high = 0, wanted
    while low < high:
        middle = (low + high) // 2
        if int(np.minimum(counts_K, middle).sum()) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def suggested_labels(scores: pa.Table, verdicts: Verdicts) -> npt.NDArray[np.int32]:
    """Returns for each sample the class it looks like, -1 where there is none.

    That is the recipe's suggestion where it makes one, and the probe's prediction otherwise.
    """
    # A recipe that suggests nothing leaves the column empty.
    if _SUGGESTED not in scores.column_names or (
        scores.column(_SUGGESTED).null_count == scores.num_rows
    ):
        return verdicts.pred_N
    suggested = pc.fill_null(scores.column(_SUGGESTED), -1).to_numpy()
    return np.asarray(suggested, dtype=np.int32)


def suspicious(verdicts: Verdicts) -> npt.NDArray[np.int64]:
    """Returns the removed rows: the lowest p_clean first, then the highest loss."""
    rows_R = np.flatnonzero(verdicts.removed_N)
    order = np.lexsort((rows_R, -verdicts.loss_N[rows_R], verdicts.p_clean_N[rows_R]))
    return rows_R[order]


def _borderline(verdicts: Verdicts, tau: float) -> npt.NDArray[np.int64]:
    distance_N = np.abs(verdicts.p_clean_N - tau)
    rows_R = np.flatnonzero(verdicts.judged_N & (distance_N < _BORDER))
    return rows_R[np.argsort(distance_N[rows_R], kind="stable")]


def _suggested(scores: pa.Table, verdicts: Verdicts) -> Queue:
    suggested_N = suggested_labels(scores, verdicts)
    rows_R = np.flatnonzero(
        verdicts.judged_N & (suggested_N >= 0) & (suggested_N != verdicts.label_N)
    )
    if _CONFIDENCE in scores.column_names:
        sure_N = pc.fill_null(scores.column(_CONFIDENCE), 0.0).to_numpy()
        said = "the surest suggestion first"
    else:
        # The probability of the given label minus that of the prediction: -1 is a sure contrary.
        sure_N = -pc.fill_null(scores.column("margin"), 0.0).to_numpy()
        said = "the probe's surest contradiction first"
    return Queue(
        "suggested",
        "Another label suggested",
        f"Kept or not, samples that look like another class than they are labelled: {said}.",
        rows_R[np.argsort(-sure_N[rows_R], kind="stable")],
    )


def _no_class(scores: pa.Table, above: float) -> list[Queue]:
    """Samples that show none of the classes, the surest first."""
    if _NO_CLASS not in scores.column_names:
        return []
    score_N = pc.fill_null(scores.column(_NO_CLASS), 0.0).to_numpy()
    rows_R = np.flatnonzero(score_N > above)
    return [
        Queue(
            "no-class",
            "Perhaps of no class",
            f"Images that probably show none of the classes (out_of_class above {above:g}), "
            "whatever is suggested for them: the surest first.",
            rows_R[np.argsort(-score_N[rows_R], kind="stable")],
        )
    ]


def _duplicates(scores: pa.Table, verdicts: Verdicts) -> list[Queue]:
    """Samples that repeat an earlier one under another label, each beside the one it repeats."""
    of = scores.column(_DUPLICATE)
    if _NEAR in scores.column_names:
        of = pc.coalesce(of, scores.column(_NEAR))
    of_N = pc.fill_null(of, -1).to_numpy().astype(np.int64)
    later = np.flatnonzero(of_N >= 0)
    later = later[verdicts.label_N[later] != verdicts.label_N[of_N[later]]]
    pairs = np.stack([of_N[later], later], axis=1).reshape(-1)
    _, first = np.unique(pairs, return_index=True)
    return [
        Queue(
            "duplicates",
            "Duplicates with different labels",
            "The same picture, or nearly the same, under two labels, side by side: at least one of "
            "them is wrong.",
            pairs[np.sort(first)],
        )
    ]


def _leaks(scores: pa.Table, verdicts: Verdicts) -> list[Queue]:
    """Samples that stand in held-out shards as well, those with another label there first."""
    if _LEAK not in scores.column_names:
        return []
    there_N = pc.fill_null(scores.column(_LEAK_LABEL), -1).to_numpy()
    rows_R = np.flatnonzero(scores.column(_LEAK).is_valid().to_numpy())
    other_R = (there_N[rows_R] >= 0) & (there_N[rows_R] != verdicts.label_N[rows_R])
    return [
        Queue(
            "leaks",
            "Also held out",
            "The same image stands in the validation or test shards; those that have another label "
            "there first.",
            rows_R[np.argsort(~other_R, kind="stable")],
        )
    ]
