"""Byte-exact filtering: a new tar from ranges of an old one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.data.table import replace_file
from shardsieve.errors import ShardError
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE

_COPY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CopiedShard:
    """A finished output shard.

    Attributes:
        file: Its name.
        source: Number of the input shard it was cut from.
        samples: How many samples it holds.
        size_bytes: Its size.
        sha256: Of its bytes.
    """

    file: str
    source: int
    samples: int
    size_bytes: int
    sha256: str


def coalesce(
    offset_N: npt.NDArray[np.int64], size_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Joins ranges that touch.

    Args:
        offset_N: First bytes, ascending.
        size_N: Bytes of each.

    Returns:
        (R, 2) start and end of the joined ranges.
    """
    ends = offset_N + size_N
    first = np.flatnonzero(np.concatenate([[True], offset_N[1:] != ends[:-1]]))
    last = np.append(first[1:], len(offset_N)) - 1
    return np.stack([offset_N[first], ends[last]], axis=1)


def copy_ranges(source: Path, ranges: npt.NDArray[np.int64], target: Path) -> tuple[int, str]:
    """Writes a tar that consists of ranges of another, headers and padding included.

    Nothing is decoded: names, times, owners and contents stay as they were.

    Args:
        source: The shard that is read.
        ranges: (R, 2) start and end, bytes.
        target: The new shard; it appears when it is whole.

    Returns:
        Its size in bytes and the sha256 of its content.

    Raises:
        ShardError: The source is gone or shorter than its index says.
    """
    digest = hashlib.sha256()
    size = 0
    temporary = target.with_name(target.name + ".part")
    try:
        descriptor = os.open(source, os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{source}: {error.strerror}. It was there when it was indexed") from error
    try:
        with temporary.open("wb") as file:
            for piece in _pieces(descriptor, ranges, source):
                digest.update(piece)
                file.write(piece)
                size += len(piece)
    finally:
        os.close(descriptor)
    replace_file(temporary, target)
    return size, digest.hexdigest()


def _pieces(descriptor: int, ranges: npt.NDArray[np.int64], source: Path) -> Iterator[bytes]:
    for start, end in ranges.tolist():
        while start < end:
            piece = os.pread(descriptor, min(_COPY_BYTES, end - start), start)
            if not piece:
                raise ShardError(
                    f"{source}: ends at byte {start:,}, its index says {end:,}. "
                    "The shard changed since it was indexed; run again"
                )
            yield piece
            start += len(piece)
    # A shard that was cut inside the padding of its last member ends off the grid.
    yield bytes(-int((ranges[:, 1] - ranges[:, 0]).sum()) % BLOCK) + END_OF_ARCHIVE
