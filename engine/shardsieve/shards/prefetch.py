"""Work on many threads whose results come in order, and batches of decoded images by it.

The decoders release the interpreter's lock, so threads decode side by side and nothing is copied
from process to process.

Shapes: B images of a batch, S side in pixels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.data.location import ShardPath
from shardsieve.errors import ShardError
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.images import quiet_pillow
from shardsieve.shards.pixels import Decoder

Item = TypeVar("Item")
Result = TypeVar("Result")
Rows = npt.NDArray[np.int64]

# Each thread has its own, and a batch lies in one shard.
_OPEN_SHARDS = 4


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int,
    start: Callable[[], None] | None = None,
) -> Generator[Result]:
    """Applies a function on several threads and yields the results in the order of the items.

    Args:
        work: What is done to an item.
        items: Looked at only as far as `ahead`, so memory does not grow with them.
        threads: How many items are worked on at a time; 0 works in the caller's thread.
        ahead: Results that may be finished or under way while the caller is busy, beside the one
            it has: back-pressure.
        start: Called once in each thread before its first item.

    Raises:
        Exception: What `work` raised, when its item is due; nothing after it is begun.
    """
    if not threads:
        yield from map(work, items)
        return
    left = iter(items)
    pool = ThreadPoolExecutor(threads, "shardsieve", initializer=start)
    try:
        due: deque[Future[Result]] = deque(
            pool.submit(work, item) for item in islice(left, max(ahead, threads))
        )
        while due:
            result = due.popleft().result()
            due.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class Clock:
    """Where the time of several threads goes, seconds of each part added up over the threads."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **seconds: float) -> None:
        """Adds seconds to parts, by name."""
        with self._lock:
            for name, spent in seconds.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + spent


class Batch(NamedTuple):
    """Decoded images.

    Attributes:
        pixels: (B, 3, S, S) u8, channels last in memory; of the images that could be decoded.
        rows: (B,) their rows in the index.
        refused: Rows that could not be decoded, and why.
    """

    pixels: torch.Tensor
    rows: Rows
    refused: list[tuple[int, str]]


class ImageBatches:
    """Reads byte ranges of shards and decodes them, from any thread."""

    def __init__(
        self,
        paths: Sequence[ShardPath],
        shard_N: npt.NDArray[np.int32],
        offset_N: npt.NDArray[np.int64],
        size_N: npt.NDArray[np.int64],
        decoder: Decoder,
        *,
        side: int,
        key_of: Callable[[int], str],
        pinned: bool = False,
    ) -> None:
        """Takes the columns of the index.

        Args:
            paths: Shards by number.
            shard_N: Shard of each row.
            offset_N: First byte of each image.
            size_N: Bytes of each image.
            decoder: Bytes to (3, S, S) u8.
            side: S.
            key_of: The key of a row, for errors.
            pinned: Puts the pixels in memory from which a GPU can fetch them by itself.
        """
        self._paths = paths
        self._shard_N, self._offset_N, self._size_N = shard_N, offset_N, size_N
        self._decoder = decoder
        self._side = side
        self._key_of = key_of
        self._pinned = pinned
        self._local = threading.local()
        self._all_files: list[ShardFiles] = []
        self.clock = Clock()

    def __call__(self, rows: Rows) -> Batch:
        """Decodes the images of some rows.

        Raises:
            ShardError: A shard is gone or changed; the message names shard and key.
        """
        shape = (len(rows), self._side, self._side, 3)
        whole = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        pixels_BSS3 = whole.numpy()
        good: list[int] = []
        refused: list[tuple[int, str]] = []
        read_s = decode_s = 0.0
        with quiet_pillow():
            for row in rows.tolist():
                begun = time.perf_counter()
                data = self.read(row)
                loaded = time.perf_counter()
                read_s += loaded - begun
                try:
                    decoded_3SS = self._decode(row, data)
                    # Plane by plane: NumPy would copy three bytes at a time.
                    for channel, plane_SS in enumerate(decoded_3SS):
                        pixels_BSS3[len(good), :, :, channel] = plane_SS
                    good.append(row)
                except ValueError as error:
                    refused.append((row, str(error)))
                decode_s += time.perf_counter() - loaded
        self.clock.add(read_s=read_s, decode_s=decode_s)
        pixels = whole[: len(good)].permute(0, 3, 1, 2)
        return Batch(pixels, np.array(good, np.int64), refused)

    def read(self, row: int) -> bytes:
        """Reads the encoded image of a row.

        Raises:
            ShardError: Its shard is gone or changed.
        """
        shard, at, size = self._shard_N[row], self._offset_N[row], self._size_N[row]
        try:
            return self._files.read(int(shard), int(at), int(size))
        except ShardError as error:
            raise ShardError(f"sample {self._key_of(row)}: {error}") from error

    def close(self) -> None:
        """Closes the shards of all threads; none may be reading."""
        while self._all_files:
            self._all_files.pop().close()
        self._local = threading.local()

    @property
    def _files(self) -> ShardFiles:
        files: ShardFiles | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = ShardFiles(self._paths, _OPEN_SHARDS)
            self._all_files.append(files)
        return files

    def _decode(self, row: int, data: bytes) -> npt.NDArray[np.uint8]:
        try:
            return self._decoder(data)
        except ValueError:
            raise
        except Exception as error:
            # Not a bad image: a bug, or no memory. Whoever looks into it needs to know where.
            shard = self._paths[int(self._shard_N[row])]
            error.add_note(f"while decoding sample {self._key_of(row)} of {shard}")
            raise
