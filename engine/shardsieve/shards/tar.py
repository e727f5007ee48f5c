"""A tar shard, mapped so that its headers can be scanned."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

import numpy as np

from shardsieve.data.location import ShardPath
from shardsieve.errors import ShardError
from shardsieve.shards.files import open_shard
from shardsieve_kernels.tar_scan import BLOCK as BLOCK
from shardsieve_kernels.tar_scan import tar_scan

END_OF_ARCHIVE = bytes(2 * BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(slots=True)
class TarScan:
    """A shard that is scanned, and what was seen of it so far.

    Attributes:
        buffer: The whole shard, mapped.
        others: Entries that belong to no sample: folders, links, metadata, global headers.
        gaps: (start, end) of ranges where no valid header was found.
        cut_at: Start of an entry whose content is cut short by the end of the file, if any.
        ended: Whether the end-of-archive marker was seen.
    """

    buffer: mmap.mmap | bytes
    others: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    cut_at: int | None = None
    ended: bool = False
    _released: int = 0

    def release(self, position: int) -> None:
        """Lets go of the pages before a position: what was scanned shall not count as memory."""
        position -= position % mmap.PAGESIZE
        if isinstance(self.buffer, mmap.mmap) and position > self._released:
            self.buffer.madvise(mmap.MADV_DONTNEED, self._released, position - self._released)
            self._released = position


def open_tar(path: ShardPath) -> TarScan:
    """Maps a shard for scanning.

    Raises:
        ShardError: It cannot be opened, is compressed, or does not begin like a tar.
    """
    try:
        with os.fdopen(open_shard(path), "rb") as file:
            # An empty file cannot be mapped.
            size = file.seek(0, 2)
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from error
    if not _begins_like_a_tar(buffer[:BLOCK]):
        magic = bytes(buffer[:2])
        if magic in _COMPRESSED:
            raise ShardError(
                f"{path}: compressed with {_COMPRESSED[magic]}. Samples are read by offset, "
                "so unpack it to a plain .tar first"
            )
        raise ShardError(f"{path}: not a tar file ({len(buffer)} bytes, no valid header at 0)")
    return TarScan(buffer)


def _begins_like_a_tar(block: bytes) -> bool:
    if len(block) < BLOCK:
        return False
    found = tar_scan(np.frombuffer(block, np.uint8), backend="reference")
    return found.cut_at == 0 or len(found.kind_E) == 1 or block == bytes(BLOCK)
