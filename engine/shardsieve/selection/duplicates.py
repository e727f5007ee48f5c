"""Pictures that stand in the data more than once, found from the cached features.

Two samples are the same picture when their images have as many bytes and their features agree but
for rounding (the same image gives slightly other features at another place of a batch). No image is
read.

Shapes: N samples, R usable ones, B rows of a block, D features, a axes, G samples of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from shardsieve.data.features import FeatureStore

_BLOCK_ROWS = 16_384
# Cosine of the features of the same picture. Half precision leaves 1 - 1e-7, bf16 arithmetic
# 1 - 1e-5; of 20,000 different photos no two reached 0.97.
_LEAST_COSINE = 0.99999
_AXES = 8
# How far apart equal pictures may lie on one random axis, and on all of them, in standard
# deviations of unit vectors. Their distance is sqrt(2 - 2 x 0.99999) = 0.0045; four standard
# deviations of what is left of it there.
_NEAR, _NEAR_ON_ALL = 0.02, 0.025
# So many are compared one with all others; of more, only those that are near on all axes.
_FEW = 64

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def same_pictures(
    features: FeatureStore, rows: Rows, size_bytes_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Finds for each sample the first one that shows the same picture.

    One pass over the features: all are projected on a few random axes, and only those that are near
    there, with equal sizes, are compared in full. Time is n log n, also where all sizes are equal
    (uncompressed images), unless thousands of them are nearly, and not quite, the same; memory is a
    few numbers per sample.

    Args:
        features: Cached features of N samples.
        rows: (R,) rows with features, ascending.
        size_bytes_N: (N,) bytes of each image.

    Returns:
        (N,) row of the first sample with this picture, -1 for that one itself and for all others.
    """
    first_N = np.full(len(features), -1, np.int64)
    if len(rows) < 2:
        return first_N
    place_Ra = _on_axes(features, rows)
    for group_G in _groups(place_Ra[:, 0], size_bytes_N[rows], _NEAR / np.sqrt(features.dim)):
        if len(group_G) <= _FEW:
            _mark(features, rows[group_G], first_N)
        else:
            near = _NEAR_ON_ALL / np.sqrt(features.dim)
            _mark_near(features, rows[group_G], place_Ra[group_G], near, first_N)
    return first_N


def _on_axes(features: FeatureStore, rows: Rows) -> Floats:
    """Returns (R, a) the unit vectors' coordinates along random directions."""
    axes_Da = np.random.default_rng(0).standard_normal((features.dim, _AXES)).astype(np.float32)
    axes_Da /= np.linalg.norm(axes_Da, axis=0)
    place_Ra = np.empty((len(rows), _AXES), np.float32)
    start = 0
    for piece, block_BD in features.blocks(rows, _BLOCK_ROWS):
        place_Ra[start : start + len(piece)] = _units(block_BD) @ axes_Da
        start += len(piece)
    return place_Ra


def _groups(place_R: Floats, size_R: npt.NDArray[np.int64], near: float) -> Iterator[Rows]:
    """Yields the positions of samples of one size with no gap between them, ascending."""
    order = np.lexsort((place_R, size_R))
    apart = np.diff(size_R[order]) != 0
    apart |= np.diff(place_R[order]) > near
    starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    ends = np.concatenate([starts[1:], [len(order)]])
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield np.sort(order[start:end])


def _mark(features: FeatureStore, rows: Rows, first_N: npt.NDArray[np.int64]) -> None:
    """Compares samples in full, the first of them with all others, and so on."""
    while len(rows) > 1:
        same = _same_as(features, rows[0], rows[1:])
        first_N[rows[1:][same]] = rows[0]
        rows = rows[1:][~same]


def _mark_near(
    features: FeatureStore,
    rows: Rows,
    place_Ga: Floats,
    near: float,
    first_N: npt.NDArray[np.int64],
) -> None:
    """Compares each sample in full with the later ones that are near it on all axes.

    The axes are cut into cells first, so that thousands of copies of one picture are but a few
    points for the search.
    """
    cells_Ca, cell_G = np.unique(np.round(place_Ga / near), axis=0, return_inverse=True)
    cell_G = cell_G.reshape(-1)
    order = np.argsort(cell_G, kind="stable")
    edges = np.searchsorted(cell_G[order], np.arange(len(cells_Ca) + 1))
    # Half a cell's diagonal is lost at either end.
    reach = 1 + np.sqrt(place_Ga.shape[1])
    tree = cKDTree(cells_Ca)
    alone_C = tree.query(cells_Ca, k=min(2, len(cells_Ca)), distance_upper_bound=reach)[0]
    alone_C = np.isinf(alone_C.reshape(len(cells_Ca), -1)[:, -1]) & (np.diff(edges) == 1)
    for one in np.flatnonzero(~alone_C[cell_G]):
        if first_N[rows[one]] >= 0:
            continue
        cells = tree.query_ball_point(cells_Ca[cell_G[one]], reach)
        others = np.concatenate([order[edges[cell] : edges[cell + 1]] for cell in cells])
        others = np.sort(others[(others > one) & (first_N[rows[others]] < 0)])
        others = others[np.linalg.norm(place_Ga[others] - place_Ga[one], axis=1) <= near]
        if len(others):
            same = _same_as(features, rows[one], rows[others])
            first_N[rows[others[same]]] = rows[one]


def _same_as(features: FeatureStore, row: np.int64, rows: Rows) -> npt.NDArray[np.bool_]:
    one_D = _units(features.take(np.array([row])))[0]
    same = np.empty(len(rows), bool)
    for start in range(0, len(rows), _BLOCK_ROWS):
        piece = slice(start, start + _BLOCK_ROWS)
        same[piece] = _units(features.take(rows[piece])) @ one_D >= _LEAST_COSINE
    return same


def _units(block_BD: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    values_BD = block_BD.astype(np.float32)
    length_B1 = np.linalg.norm(values_BD, axis=1, keepdims=True)
    return np.asarray(values_BD / np.maximum(length_B1, 1e-12))
