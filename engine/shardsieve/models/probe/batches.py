"""Batches of scaled features: streamed from disk through one block, or resident on the device.

Shapes: R rows that are trained on, B batch, D features. A position is an index into those R rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.models.probe.scaling import Scaling
from shardsieve.models.probe.source import FeatureSource, sequential

# Features at hand at a time, in memory; what is not larger is loaded once.
_BLOCK_BYTES = 256 * 2**20
# Rows that stay together when more than one block is shuffled: 100 KB read in one go.
_RUN = 64
# Rows scaled together, so that they stay in the cache between gathering, widening and scaling.
_TILE = 256
_GPU_SLACK_BYTES = 2 * 2**30

Piece = tuple[torch.Tensor, Any]
"""Scaled (B, D) features, good until the next piece is asked for, and their positions: an array or
a slice."""


class Batches(Protocol):
    """Where a solver gets its inputs from."""

    dtype: torch.dtype
    per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Iterator[Piece]]:
        """Yields the batches of an epoch in an order of its own, each as pieces."""

    def all(self) -> Iterator[Piece]:
        """Yields everything once, in an order that is always the same, positions as slices."""

    def sample(self, n_rows: int) -> Iterator[Piece]:
        """Yields about that many rows from all over the data, always the same."""


class Streamed:
    """Blocks of at most 256 MB of features as they lie on disk; f32 only per piece.

    Where there is more than a block, runs of rows are drawn at random to fill one, and its rows are
    shuffled: every block is a fair sample, and the disk is read in long pieces.
    """

    def __init__(
        self,
        features: FeatureSource,
        rows: npt.NDArray[np.int64],
        scaling: Scaling,
        *,
        batch_size: float,
        piece_rows: int,
        seed: int,
        device: torch.device,
        longest: int | None = None,
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        """Takes the rows to go through, sorted or not.

        Args:
            features: The source.
            rows: (R,).
            scaling: What is done to the features.
            batch_size: Rows in a step, nearly; not whole where it is a share of one.
            piece_rows: Rows that go through the products together.
            seed: Of the order.
            device: Where batches go.
            longest: R of the process that has most rows: all take as many steps. Default: R.
            block_bytes: Features at hand at a time.
        """
        self.dtype = torch.float32
        self._features, self._rows, self._scaling = features, rows, scaling
        self._piece_rows, self._seed, self._device = piece_rows, seed, device
        item = features.take(rows[:1]).itemsize
        wanted = max(_RUN, block_bytes // (item * features.dim))
        longest = len(rows) if longest is None else longest
        n_blocks = math.ceil(longest / wanted)
        self._block_rows = math.ceil(longest / n_blocks)
        # Nearly equal ones: a last batch of a few samples would make a step as large as any.
        self._batches_of_block = [
            math.ceil(min(self._block_rows, longest - start) / batch_size)
            for start in range(0, longest, self._block_rows)
        ]
        self.per_epoch = sum(self._batches_of_block)
        self._whole = features.take(rows) if n_blocks == 1 else None
        size = min(piece_rows, len(rows))
        self._inputs = torch.empty(size, features.dim, device=device)

    def epoch(self, epoch: int) -> Iterator[Iterator[Piece]]:
        """See `Batches`."""
        rng = np.random.default_rng([self._seed, epoch])
        blocks = zip(self._batches_of_block, self._shuffled_blocks(rng), strict=True)
        for n_batches, (positions, block) in blocks:
            order = rng.permutation(len(positions))
            for batch in np.array_split(order, n_batches):
                yield self._pieces(block, batch, positions)

    def all(self) -> Iterator[Piece]:
        """See `Batches`."""
        blocks = (
            sequential(self._features, self._rows, self._block_rows)
            if self._whole is None
            else iter([(slice(0, len(self._rows)), self._whole)])
        )
        for part, block in blocks:
            for start in range(0, len(block), self._piece_rows):
                inside = block[start : start + self._piece_rows]
                where = slice(part.start + start, part.start + start + len(inside))
                yield self._scaled(inside, None), where

    def sample(self, n_rows: int) -> Iterator[Piece]:
        """See `Batches`."""
        n_rows = min(n_rows, len(self._rows))
        positions = np.linspace(0, len(self._rows) - 1, n_rows).round().astype(np.int64)
        block = self._features.take(self._rows[positions])
        yield from self._pieces(block, np.arange(n_rows), positions)

    def _shuffled_blocks(
        self, rng: np.random.Generator
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        if self._whole is not None:
            yield np.arange(len(self._rows)), self._whole
            return
        starts = rng.permutation(np.arange(0, len(self._rows), _RUN))
        runs = starts[:, None] + np.arange(_RUN)
        shuffled = runs[runs < len(self._rows)]
        # One may be empty, where another process has a row more.
        for start in range(0, len(self._batches_of_block) * self._block_rows, self._block_rows):
            positions = np.sort(shuffled[start : start + self._block_rows])
            yield positions, self._features.take(self._rows[positions])

    def _pieces(
        self,
        block: npt.NDArray[Any],
        inside: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> Iterator[Piece]:
        for start in range(0, len(inside), self._piece_rows):
            piece = inside[start : start + self._piece_rows]
            yield self._scaled(block, piece), positions[piece]

    def _scaled(self, block: npt.NDArray[Any], rows: npt.NDArray[np.int64] | None) -> torch.Tensor:
        """Scales some rows, None for all in their order."""
        inputs = self._inputs[: len(block if rows is None else rows)]
        for start in range(0, len(inputs), _TILE):
            tile = inputs[start : start + _TILE]
            part = slice(start, start + _TILE)
            taken = block[part] if rows is None else np.take(block, rows[part], axis=0)
            tile.copy_(torch.from_numpy(taken))
            self._scaling.apply_(tile)
        return inputs


class Resident:
    """All features on the device, scaled and shuffled once: a batch is a slice, copied nowhere.

    Epochs differ in the order of the batches, not in what is in them.
    """

    def __init__(
        self,
        inputs_RD: torch.Tensor,
        order: torch.Tensor,
        *,
        batch_size: float,
        piece_rows: int,
        seed: int,
        longest: int | None = None,
    ) -> None:
        """Takes scaled features in a shuffled order.

        Args:
            inputs_RD: f16 or f32, on the device.
            order: (R,) i64, position of each row as it lies there.
            batch_size: Rows in a step, nearly.
            piece_rows: Rows that go through the products together.
            seed: Of the order of the batches.
            longest: R of the process that has most rows: all take as many steps. Default: R.
        """
        self.dtype = inputs_RD.dtype
        self.order = order
        self.per_epoch = math.ceil((longest or len(inputs_RD)) / batch_size)
        self._inputs, self._piece_rows, self._seed = inputs_RD, piece_rows, seed
        self._edges = np.linspace(0, len(inputs_RD), self.per_epoch + 1).round().astype(int)

    @classmethod
    def load(
        cls,
        features: FeatureSource,
        rows: npt.NDArray[np.int64],
        scaling: Scaling,
        *,
        batch_size: float,
        piece_rows: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        longest: int | None = None,
    ) -> Resident:
        """Reads the features in their order, block by block, and lays them down shuffled."""
        shuffled = np.random.default_rng([seed, 0]).permutation(len(rows))
        order = torch.from_numpy(shuffled).to(device)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(rows), device=device)
        inputs_RD = torch.empty(len(rows), features.dim, dtype=dtype, device=device)
        for part, block in sequential(features, rows, 16_384):
            scaled = scaling.apply_(torch.from_numpy(block).to(device).float())
            inputs_RD.index_copy_(0, place[part], scaled.to(dtype))
        return cls(
            inputs_RD,
            order,
            batch_size=batch_size,
            piece_rows=piece_rows,
            seed=seed,
            longest=longest,
        )

    def epoch(self, epoch: int) -> Iterator[Iterator[Piece]]:
        """See `Batches`."""
        order = np.random.default_rng([self._seed, 1, epoch]).permutation(self.per_epoch)
        for batch in order:
            yield self._pieces(int(self._edges[batch]), int(self._edges[batch + 1]))

    def all(self) -> Iterator[Piece]:
        """See `Batches`."""
        return self._pieces(0, len(self._inputs))

    def sample(self, n_rows: int) -> Iterator[Piece]:
        """See `Batches`."""
        return self._pieces(0, min(n_rows, len(self._inputs)))

    def _pieces(self, start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, self._piece_rows):
            piece = slice(first, min(first + self._piece_rows, stop))
            yield self._inputs[piece], piece


def fits_on(device: torch.device, n_rows: int, dim: int) -> bool:
    """Returns whether so many features can stay on the device, as f16 on a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return n_rows * dim * 2 + _GPU_SLACK_BYTES < free


def make_batches(
    features: FeatureSource,
    rows: npt.NDArray[np.int64],
    scaling: Scaling,
    *,
    batch_size: float,
    piece_rows: int,
    seed: int,
    device: torch.device,
    resident: bool,
    longest: int,
) -> Streamed | Resident:
    """Keeps the features on the device, as f16, or streams them."""
    if resident:
        return Resident.load(
            features,
            rows,
            scaling,
            batch_size=batch_size,
            piece_rows=piece_rows,
            seed=seed,
            device=device,
            dtype=torch.float16,
            longest=longest,
        )
    return Streamed(
        features,
        rows,
        scaling,
        batch_size=batch_size,
        piece_rows=piece_rows,
        seed=seed,
        device=device,
        longest=longest,
    )
