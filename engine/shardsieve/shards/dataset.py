"""Decoded images by row of the index, as torch's loader wants them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from shardsieve.data.location import ShardPath
from shardsieve.errors import DataError, ShardError
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.images import decode

_WRAPPED = "shardsieve.errors.ShardError: "

Transform = Callable[[Image.Image], Any]
Pixels = npt.NDArray[np.uint8]
# (row, pixels as C H W, None) or (row, None, why it could not be decoded).
Decoded = tuple[int, Pixels | None, str | None]
Rows = npt.NDArray[np.int64]


class ImageRows(Dataset[Decoded]):
    """Decoded images by row of the index, read from the original shards.

    A bad image is a result, not an error: (row, None, reason).
    """

    def __init__(
        self,
        paths: Sequence[ShardPath],
        shard_N: npt.NDArray[np.int32],
        offset_N: npt.NDArray[np.int64],
        size_N: npt.NDArray[np.int64],
        transform: Transform,
        seed: Sequence[int] | None = None,
    ) -> None:
        """Takes the columns of the index and a timm transform that ends in uint8 C H W.

        Args:
            paths: Shards by number.
            shard_N: Shard of each row.
            offset_N: First byte of each image.
            size_N: Bytes of each image.
            transform: PIL image to uint8 (3, H, W).
            seed: Makes a random transform depend on seed and row only, not on which worker runs it.
        """
        self._files = ShardFiles(paths)
        self._shard_N, self._offset_N, self._size_N = shard_N, offset_N, size_N
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._shard_N)

    def __getitem__(self, row: int) -> Decoded:
        data = self._files.read(
            int(self._shard_N[row]), int(self._offset_N[row]), int(self._size_N[row])
        )
        try:
            image = decode(data)
        except ValueError as error:
            return row, None, str(error)
        if self._seed is None:
            return row, np.asarray(self._transform(image)), None
        with _random_by(*self._seed, row):
            return row, np.asarray(self._transform(image)), None


@contextmanager
def _random_by(*numbers: int) -> Iterator[None]:
    """Makes random transforms a function of some numbers; what was before comes back.

    timm draws crops from python and torch, and the operations of RandAugment from numpy.
    """
    state = np.random.SeedSequence(numbers).generate_state(3, np.uint32).tolist()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    # The CPU's generator alone: torch.manual_seed would touch those of GPUs as well.
    torch.default_generator.manual_seed(state[0])
    random.seed(state[1])
    np.random.seed(state[2])  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


class _Batches(Sampler[list[int]]):
    """Batches of rows as torch wants them: lists, made when they are due."""

    def __init__(self, batches: Sequence[Rows]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def stream(
    images: ImageRows, batches: Sequence[Rows], *, workers: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, Rows, list[Decoded]]]:
    """Decodes batch after batch in other processes, a few ahead of the one that is used.

    Args:
        images: The decoded images by row.
        batches: Rows of each batch.
        workers: Processes; 0 decodes in this one.
        device: Where the pixels go next: for a GPU they are put in pinned memory.

    Yields:
        What `collate` returns for each batch, in order.

    Raises:
        ShardError: A shard vanished or changed.
        DataError: A worker died.
    """
    loader = DataLoader(
        images,
        batch_sampler=_Batches(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    try:
        yield from loader
    except ShardError as error:
        # torch wraps a worker's error in its traceback; the message is the last line.
        raise ShardError(str(error).strip().splitlines()[-1].removeprefix(_WRAPPED)) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a process that decodes images died, most likely for want of memory "
            f"(or of shared memory, in a container): {error}. Set fewer workers"
        ) from error


def collate(batch: list[Decoded]) -> tuple[torch.Tensor, Rows, list[Decoded]]:
    """Stacks what could be decoded.

    Returns:
        (B, 3, H, W) u8, the B rows, and the ones that could not be decoded.
    """
    good = [(row, pixels) for row, pixels, _ in batch if pixels is not None]
    bad = [item for item in batch if item[1] is None]
    rows = np.array([row for row, _ in good], np.int64)
    if not good:
        return torch.empty(0, dtype=torch.uint8), rows, bad
    return torch.from_numpy(np.stack([pixels for _, pixels in good])), rows, bad
