"""What the nearest other samples say of a sample's class.

Shapes: N samples, J neighbours, K classes, C with the foreign one (see `noise_model`), F folds,
B rows of a block, d axes, S classes stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

N_NEIGHBOURS = 24
# Fewer axes of the projection find worse neighbours, more cost more than they bring (measured).
_AXES = 256
# Up to here every sample is compared with every other one.
EXACT_SAMPLES = 50_000
# Above: lists of about this many samples each, this many of them searched.
_LIST_SAMPLES, _LISTS_SEARCHED, _TRAINED_PER_LIST = 500, 8, 40
_BLOCK_ROWS = 16_384
# Classes that are stored of a posterior; what they leave out is lost, a few thousandths of it.
_STORED = 8
# Votes added in all, spread evenly over the classes.
_PRIOR_VOTES = 5.0


class Neighbourhood:
    """Votes of each sample's nearest neighbours, by posteriors that have not seen its fold.

    Under held-out fold f every sample of another fold has a posterior, with its own label in it, by
    classifiers that saw neither f nor its fold. A sample of fold f is told what the posteriors of
    its neighbours under f come to, so that its own label has no part in it; neighbours of its own
    fold have no vote.
    """

    def __init__(
        self, index_NJ: npt.NDArray[np.int32], n_folds: int, n_classes: int, folder: Path | None
    ) -> None:
        """Keeps the neighbours, and room for the votes.

        Args:
            index_NJ: (N, J) rows of the nearest other samples.
            n_folds: F.
            n_classes: K.
            folder: The votes are mapped from files here; None keeps them in memory.
        """
        self._index_NJ = index_NJ
        self._n_classes = n_classes
        # Of the posteriors: more by one where there is a class for foreign images.
        self._n_true = n_classes
        shape = (len(index_NJ), n_folds, min(_STORED, n_classes + 1))
        self._class_NFS = _zeros(folder, "votes-class.npy", shape, np.int32)
        self._weight_NFS = _zeros(folder, "votes-weight.npy", shape, np.float16)

    def remember(
        self, rows: npt.NDArray[np.int64], posterior_BFC: npt.NDArray[np.floating]
    ) -> None:
        """Keeps the largest parts of the posteriors of some rows, by held-out fold."""
        self._n_true = posterior_BFC.shape[2]
        n_stored = min(self._class_NFS.shape[2], self._n_true)
        largest_BFS = np.argpartition(-posterior_BFC, n_stored - 1, axis=2)[:, :, :n_stored]
        self._class_NFS[rows, :, :n_stored] = largest_BFS
        self._weight_NFS[rows, :, :n_stored] = np.take_along_axis(posterior_BFC, largest_BFS, 2)
        # There may have been one more class before.
        self._class_NFS[rows, :, n_stored:] = self._weight_NFS[rows, :, n_stored:] = 0

    def label_votes(
        self,
        rows: npt.NDArray[np.int64],
        label_N: npt.NDArray[np.int32],
        fold_N: npt.NDArray[np.integer],
        left_out: tuple[int, ...],
    ) -> csr_array:
        """Returns (B, K) f64: how many neighbours of other folds were given each label."""
        near_BJ = self._index_NJ[rows]
        votes_BJ = ~np.isin(fold_N[near_BJ], left_out)
        starts = np.arange(len(rows) + 1) * near_BJ.shape[1]
        return csr_array(
            (votes_BJ.ravel().astype(np.float64), label_N[near_BJ].ravel(), starts),
            shape=(len(rows), self._n_classes),
        )

    def agreement(
        self, rows: npt.NDArray[np.int64], label_N: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        """Returns (B,): share of the neighbours with the same label as given; NaN without any."""
        near_BJ = self._index_NJ[rows]
        other_BJ = near_BJ != rows[:, None]
        same_B = ((label_N[near_BJ] == label_N[rows, None]) & other_BJ).sum(1)
        count_B = other_BJ.sum(1)
        share_B = np.full(len(rows), np.nan, np.float32)
        return np.divide(same_B, count_B, out=share_B, where=count_B > 0, casting="unsafe")

    def logits(
        self, rows: npt.NDArray[np.int64], fold_B: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        """Returns (B, C): the log of each class's share of the votes, smoothed.

        C are the classes of the posteriors that were remembered last.
        """
        near_BJ, fold_B1 = self._index_NJ[rows], fold_B.astype(np.int64)[:, None]
        class_BV = self._class_NFS[near_BJ, fold_B1].reshape(len(rows), -1).astype(np.int64)
        weight_BV = self._weight_NFS[near_BJ, fold_B1].reshape(len(rows), -1)
        place_BV = class_BV + self._n_true * np.arange(len(rows))[:, None]
        votes = np.bincount(place_BV.ravel(), weight_BV.ravel(), minlength=len(rows) * self._n_true)
        votes_BC = votes.reshape(len(rows), self._n_true) + _PRIOR_VOTES / self._n_true
        votes_BC /= votes_BC.sum(1, keepdims=True)
        return np.log(votes_BC).astype(np.float32)


def nearest(
    points_Nd: npt.NDArray[np.floating],
    n_neighbours: int = N_NEIGHBOURS,
    *,
    folder: Path | None = None,
    exact_samples: int = EXACT_SAMPLES,
) -> npt.NDArray[np.int32]:
    """Finds the nearest other samples by the cosine of their first axes.

    Up to `exact_samples` samples all are compared. Above, faiss searches the 8 nearest of N / 500
    lists, with 8 bits an axis: 256 bytes a sample, which is compared with N / 500 + 4,000 others.

    Args:
        points_Nd: (N, d) projected features, may be mapped from a file: read in blocks.
        n_neighbours: J; fewer where there are not as many other samples.
        folder: The result is mapped from a file here; None keeps it in memory.
        exact_samples: Where the lists begin.

    Returns:
        (N, J) i32 rows, the nearest first.
    """
    n_samples = len(points_Nd)
    n_neighbours = min(n_neighbours, n_samples - 1)
    index_NJ = _zeros(folder, "neighbours.npy", (n_samples, n_neighbours), np.int32)
    if not n_neighbours:
        return index_NJ
    search = _search(points_Nd, exact_samples)
    for start in range(0, n_samples, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, n_samples))
        # One more than wanted: the nearest of a sample is the sample itself.
        found_BJ = search.search(_directions(points_Nd, rows), n_neighbours + 1)[1]
        index_NJ[rows] = _others(found_BJ, rows)
    return index_NJ


def _search(points_Nd: npt.NDArray[np.floating], exact_samples: int) -> Any:
    """Returns a faiss index of all samples."""
    import faiss

    n_samples, n_axes = len(points_Nd), min(points_Nd.shape[1], _AXES)
    if n_samples <= exact_samples:
        index: Any = faiss.IndexFlatIP(n_axes)
    else:
        n_lists = -(-n_samples // _LIST_SAMPLES)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(n_axes),
            n_axes,
            n_lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.nprobe = _LISTS_SEARCHED
        rng = np.random.default_rng(0)
        few = rng.choice(n_samples, min(n_samples, _TRAINED_PER_LIST * n_lists), replace=False)
        index.train(_directions(points_Nd, np.sort(few)))
    for start in range(0, n_samples, _BLOCK_ROWS):
        index.add(_directions(points_Nd, np.arange(start, min(start + _BLOCK_ROWS, n_samples))))
    return index


def _directions(
    points_Nd: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns (B, min(d, 256)) unit vectors."""
    values_Bd = points_Nd[rows, :_AXES].astype(np.float32)
    length_B1 = np.linalg.norm(values_Bd, axis=1, keepdims=True)
    return np.ascontiguousarray(values_Bd / np.maximum(length_B1, np.finfo(np.float32).tiny))


def _others(found_BJ: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Takes the sample itself out of what was found; (B, J) of (B, J + 1).

    Where copies of it came first, or the lists searched had fewer, the last one goes, and gaps are
    filled with the sample itself: its own fold has no vote.
    """
    own_BJ = found_BJ == rows[:, None]
    own_BJ[~own_BJ.any(1), -1] = True
    others_BJ = found_BJ[~own_BJ].reshape(len(rows), -1)
    return np.where(others_BJ < 0, rows[:, None], others_BJ)


def _zeros(
    folder: Path | None, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    if folder is None:
        return np.zeros(shape, dtype)
    # A new file reads as zeros, and takes no space before it is written to.
    return np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape)
