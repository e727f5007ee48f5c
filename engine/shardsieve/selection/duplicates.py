"""Pictures that stand in the data more than once, found from the cached features.

Two samples are the same picture when their images have as many bytes and their features agree but
for rounding (the same image gives slightly other features at another place of a batch). No image is
read.

Shapes: N samples, R usable ones, B rows of a block, D features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardsieve.data.features import FeatureStore

_BLOCK_ROWS = 16_384
# Cosine of the features of the same picture. Half precision leaves 1 - 1e-7, bf16 arithmetic
# 1 - 1e-5; of 20,000 different photos no two reached 0.97.
_LEAST_COSINE = 0.99999
# How far apart equal pictures may lie on a random axis, in standard deviations of unit vectors.
# Their distance is sqrt(2 - 2 x 0.99999) = 0.0045; four standard deviations of its projection.
_NEAR = 0.02


def same_pictures(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    size_bytes_N: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Finds for each sample the first one that shows the same picture.

    One pass over the features: all are projected on one random axis, and only neighbours there with
    equal sizes are compared in full. Memory is a few numbers per sample.

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
    place_R = _on_an_axis(features, rows)
    order = np.lexsort((place_R, size_bytes_N[rows]))
    apart = np.diff(size_bytes_N[rows][order]) != 0
    apart |= np.diff(place_R[order]) > _NEAR / np.sqrt(features.dim)
    starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    ends = np.concatenate([starts[1:], [len(rows)]])
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        _mark(features, np.sort(rows[order[start:end]]), first_N)
    return first_N


def _on_an_axis(features: FeatureStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Returns (R,) the unit vectors' coordinate along one random direction."""
    axis_D = np.random.default_rng(0).standard_normal(features.dim).astype(np.float32)
    axis_D /= np.linalg.norm(axis_D)
    place_R = np.empty(len(rows), np.float32)
    start = 0
    for piece, block_BD in features.blocks(rows, _BLOCK_ROWS):
        values_BD = block_BD.astype(np.float32)
        length_B = np.sqrt(np.einsum("bd,bd->b", values_BD, values_BD))
        place_R[start : start + len(piece)] = values_BD @ axis_D / np.maximum(length_B, 1e-12)
        start += len(piece)
    return place_R


def _mark(
    features: FeatureStore, rows: npt.NDArray[np.int64], first_N: npt.NDArray[np.int64]
) -> None:
    """Compares samples of one size in full, the first of them with all others, and so on."""
    while len(rows) > 1:
        same = np.ones(len(rows), bool)
        one_D = _units(features.take(rows[:1]))[0]
        for start in range(1, len(rows), _BLOCK_ROWS):
            piece = slice(start, start + _BLOCK_ROWS)
            same[piece] = _units(features.take(rows[piece])) @ one_D >= _LEAST_COSINE
        first_N[rows[1:][same[1:]]] = rows[0]
        rows = rows[~same]


def _units(block_BD: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    values_BD = block_BD.astype(np.float32)
    length_B1 = np.linalg.norm(values_BD, axis=1, keepdims=True)
    return np.asarray(values_BD / np.maximum(length_B1, 1e-12))
