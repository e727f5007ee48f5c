"""Copies that were saved anew, resized, cropped or mirrored, found from the cached features.

Two images are near duplicates when the cosine of their features is high enough. Not all pairs are
looked at: the samples are cut in half by a random direction again and again until few are left in
a leaf, and compared within the leaves, those of several such trees. Neighbours are seldom cut
apart, strangers soon. (The nearest few of `neighbours` would not do: of a thousand copies of one
picture those may all be later ones.) Time is n log n; memory a few numbers per sample, the
projection is mapped.

Shapes: N samples, R usable ones, B rows of a block, D features, d axes, L samples of a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.data.features import FeatureStore

_BLOCK_ROWS = 16_384
# Samples that the axes are found on, and the axes: cutting and the first comparison need no more.
_AXIS_ROWS, _AXES = 10_000, 64
# Samples of a leaf at most; trees (of 2,000 planted copies of photos 16 trees miss few, see
# docs/selection.md).
_LEAF, _TREES = 256, 16
# What rounding to f16 may add to a squared distance of unit vectors.
_ROUNDING = 2e-3

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def near_duplicates(
    features: FeatureStore, rows: Rows, least_cosine: float, scratch: Path
) -> npt.NDArray[np.int64]:
    """Finds for each sample an earlier one that shows nearly the same.

    Args:
        features: Cached features of N samples.
        rows: (R,) rows with features, ascending.
        least_cosine: Of the features of two near duplicates.
        scratch: A file that is written and deleted: 128 bytes a sample.

    Returns:
        (N,) row of the earlier sample that is most alike, as far as it was found; -1 for none.
    """
    earlier_N = np.full(len(features), -1, np.int64)
    if len(rows) < 2:
        return earlier_N
    points_Rd = _project(features, rows, scratch)
    squared_R = np.full(len(rows), 2 * (1 - least_cosine) + _ROUNDING, np.float32)
    nearest_R = np.full(len(rows), -1, np.int64)
    for tree in range(_TREES):
        for leaf_L in _leaves(points_Rd, np.random.default_rng([tree, 7])):
            _compare(points_Rd, leaf_L, squared_R, nearest_R)
    del points_Rd
    scratch.unlink()
    later = np.flatnonzero(nearest_R >= 0)
    for start in range(0, len(later), _BLOCK_ROWS):
        piece = later[start : start + _BLOCK_ROWS]
        one_BD = _units(features.take(rows[piece]))
        other_BD = _units(features.take(rows[nearest_R[piece]]))
        same_B = np.einsum("bd,bd->b", one_BD, other_BD) >= least_cosine
        earlier_N[rows[piece[same_B]]] = rows[nearest_R[piece[same_B]]]
    return earlier_N


def _project(features: FeatureStore, rows: Rows, scratch: Path) -> npt.NDArray[np.float16]:
    """Writes the unit vectors' coordinates on their principal axes into a mapped file.

    Distances there are never larger than between the vectors themselves.
    """
    few = rows
    if len(rows) > _AXIS_ROWS:
        few = np.sort(np.random.default_rng(0).choice(rows, _AXIS_ROWS, replace=False))
    sample = _units(features.take(few))
    mean_D = sample.mean(0)
    sample -= mean_D
    _, axes_DD = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    axes_Dd = axes_DD[:, ::-1][:, :_AXES].astype(np.float32)
    points_Rd = np.lib.format.open_memmap(
        scratch, mode="w+", dtype=np.float16, shape=(len(rows), axes_Dd.shape[1])
    )
    start = 0
    for piece, block_BD in features.blocks(rows, _BLOCK_ROWS):
        points_Rd[start : start + len(piece)] = (_units(block_BD) - mean_D) @ axes_Dd
        start += len(piece)
    return points_Rd


def _leaves(points_Rd: npt.NDArray[np.float16], rng: np.random.Generator) -> Iterator[Rows]:
    """Yields the leaves of a tree, each in row order; every cut of a level has one direction."""
    n_rows, n_axes = points_Rd.shape
    n_cuts = max(0, int(np.ceil(np.log2(n_rows / _LEAF))))
    direction_dC = rng.standard_normal((n_axes, n_cuts)).astype(np.float32)
    place_RC = np.empty((n_rows, n_cuts), np.float32)
    for start in range(0, n_rows, _BLOCK_ROWS):
        block_Bd = points_Rd[start : start + _BLOCK_ROWS].astype(np.float32)
        place_RC[start : start + _BLOCK_ROWS] = block_Bd @ direction_dC
    node_R = np.zeros(n_rows, np.int64)
    for cut in range(n_cuts):
        order = np.lexsort((place_RC[:, cut], node_R))
        count = np.bincount(node_R, minlength=1 << cut)
        first = np.cumsum(count) - count
        sorted_R = node_R[order]
        upper_R = np.arange(n_rows) - first[sorted_R] >= count[sorted_R] // 2
        node_R[order] = 2 * sorted_R + upper_R
    order = np.argsort(node_R, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(node_R[order])) + 1)


def _compare(
    points_Rd: npt.NDArray[np.float16],
    leaf_L: Rows,
    squared_R: Floats,
    nearest_R: npt.NDArray[np.int64],
) -> None:
    """Notes for each sample of a leaf the nearest earlier one, if it is nearer than any so far."""
    points_Ld = points_Rd[leaf_L].astype(np.float32)
    length_L = np.einsum("ld,ld->l", points_Ld, points_Ld)
    squared_LL = length_L[:, None] + length_L - 2 * points_Ld @ points_Ld.T
    squared_LL[np.triu_indices(len(leaf_L))] = np.inf
    best_L = squared_LL.argmin(1)
    found_L = squared_LL[np.arange(len(leaf_L)), best_L]
    nearer = found_L < squared_R[leaf_L]
    squared_R[leaf_L[nearer]] = found_L[nearer]
    nearest_R[leaf_L[nearer]] = leaf_L[best_L[nearer]]


def _units(block_BD: npt.NDArray[np.floating]) -> Floats:
    values_BD = block_BD.astype(np.float32)
    length_B1 = np.linalg.norm(values_BD, axis=1, keepdims=True)
    return np.asarray(values_BD / np.maximum(length_B1, 1e-12))
