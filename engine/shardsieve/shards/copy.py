"""Byte-exact filtering: a new tar from ranges of old ones, copied inside the kernel.

R joined ranges, each (number of the shard, first byte, end).
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.data.disk import refuses_writing, writing_to
from shardsieve.data.table import replace_file
from shardsieve.errors import ShardError
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE

Ranges = npt.NDArray[np.int64]
# Copies up to `count` bytes from `start` of a file to where another stands; returns how many.
Way = Callable[[int, int, int, int], int]

_BUFFER_BYTES = 256 * 1024
# One call moves at most this much, so that hashing follows while the pages are in memory.
_AT_ONCE = 64 * 1024 * 1024
# What a kernel or a file system answers that cannot copy in this way between these two files.
_TRY_ANOTHER_WAY = {
    errno.EXDEV,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EBADF,
    errno.ETXTBSY,
    errno.EAGAIN,
}


@dataclass(frozen=True, slots=True)
class CopiedShard:
    """A finished output shard.

    Attributes:
        file: Its name.
        source: Number of the input shard it was cut from, None when there are several.
        samples: How many samples it holds.
        size_bytes: Its size.
        sha256: Of its bytes, None when they were not to be hashed.
    """

    file: str
    source: int | None
    samples: int
    size_bytes: int
    sha256: str | None


def coalesce(
    shard_N: npt.NDArray[np.int32],
    offset_N: npt.NDArray[np.int64],
    size_N: npt.NDArray[np.int64],
) -> Ranges:
    """Joins each range to the one before it when they touch.

    Args:
        shard_N: Number of the shard of each range.
        offset_N: First bytes.
        size_N: Bytes of each.

    Returns:
        (R, 3) shard, start and end of the joined ranges, in the order given.
    """
    if not len(offset_N):
        return np.empty((0, 3), np.int64)
    ends = offset_N + size_N
    apart = (offset_N[1:] != ends[:-1]) | (shard_N[1:] != shard_N[:-1])
    first = np.flatnonzero(np.concatenate([[True], apart]))
    last = np.append(first[1:], len(offset_N)) - 1
    return np.stack([shard_N[first].astype(np.int64), offset_N[first], ends[last]], axis=1)


def padded(size_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rounds sizes up to whole tar blocks.

    Only a shard that was cut inside the padding of its last member has a sample off the grid.
    """
    return -(-size_N // BLOCK) * BLOCK


def copy_ranges(
    files: ShardFiles, ranges: Ranges, target: Path, *, sha256: bool = True
) -> tuple[int, str | None]:
    """Writes a tar that consists of ranges of others, headers and padding included.

    Nothing is decoded: names, times, owners and contents stay as they were.

    Args:
        files: The shards that are read.
        ranges: (R, 3) shard, start and end, bytes.
        target: The new shard; it appears when it is whole.
        sha256: Whether to hash it.

    Returns:
        Its size in bytes, and the sha256 of its content if that was asked for.

    Raises:
        ShardError: A source is gone or shorter than its index says.
        DiskError: The target's disk is full or refuses to be written to.
    """
    temporary = target.with_name(target.name + ".part")
    digest = hashlib.sha256() if sha256 else None
    with writing_to(target.parent, target):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            size = _fill(descriptor, files, ranges, digest)
        finally:
            os.close(descriptor)
        replace_file(temporary, target)
    return size, digest.hexdigest() if digest is not None else None


def _fill(target: int, files: ShardFiles, ranges: Ranges, digest: hashlib._Hash | None) -> int:
    ways = list(_WAYS)
    size = hashed = 0
    for shard, start, end in _pieces(ranges):
        _copy_range(target, files, shard, start, end, ways)
        size += end - start
        if gap := -size % BLOCK:
            size += _write_all(target, bytes(gap))
        if digest is not None and size - hashed >= _AT_ONCE:
            hashed = _hash_up_to(target, size, hashed, digest)
    size += _write_all(target, END_OF_ARCHIVE)
    if digest is not None:
        _hash_up_to(target, size, hashed, digest)
    return size


def _pieces(ranges: Ranges) -> Iterator[tuple[int, int, int]]:
    """Yields the ranges, the long ones cut on the tar's grid."""
    for shard, start, end in ranges.tolist():
        for first in range(start, end, _AT_ONCE):
            yield shard, first, min(first + _AT_ONCE, end)


def _copy_range(
    target: int, files: ShardFiles, shard: int, start: int, end: int, ways: list[Way]
) -> None:
    """Copies one range; a way that does not work between these files is not tried again."""
    source = files.descriptor(shard)
    while start < end:
        try:
            copied = ways[0](target, source, start, end - start)
        except OSError as error:
            if len(ways) > 1 and error.errno in _TRY_ANOTHER_WAY:
                del ways[0]
                continue
            if refuses_writing(error):
                raise
            raise ShardError(
                f"{files.path(shard)} at byte {start:,}: {error.strerror}, while it was copied"
            ) from error
        if copied == 0 and len(ways) > 1:
            # Some file systems answer 0 where they cannot; reading says whether it is the end.
            del ways[0]
        elif copied == 0:
            raise ShardError(
                f"{files.path(shard)}: ends at byte {start:,}, its index says {end:,}. "
                "The shard changed since it was indexed; run again"
            )
        start += copied


def _with_copy_file_range(target: int, source: int, start: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset_src=start)


def _with_sendfile(target: int, source: int, start: int, count: int) -> int:
    return os.sendfile(target, source, start, count)


def _with_read_and_write(target: int, source: int, start: int, count: int) -> int:
    return _write_all(target, os.pread(source, min(count, 16 * _BUFFER_BYTES), start))


def _ways() -> tuple[Way, ...]:
    ways: list[Way] = [_with_read_and_write]
    if sys.platform == "linux":
        # Elsewhere sendfile only writes to sockets.
        ways.insert(0, _with_sendfile)
        if hasattr(os, "copy_file_range"):
            ways.insert(0, _with_copy_file_range)
    return tuple(ways)


_WAYS = _ways()


def _write_all(target: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def _hash_up_to(target: int, end: int, start: int, digest: hashlib._Hash) -> int:
    """Hashes what was written since the last call, from the page cache."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while start < end:
        read = os.preadv(target, [buffer[: end - start]], start)
        if read == 0:
            raise OSError(errno.EIO, "the file became shorter while it was written")
        digest.update(buffer[:read])
        start += read
    return start
