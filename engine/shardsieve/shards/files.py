"""Open shards, read by byte range."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from shardsieve.data.location import RemotePath, ShardPath
from shardsieve.errors import ShardError


def open_shard(path: ShardPath) -> int:
    """Opens a shard for reading, a remote one by its local copy, and returns the descriptor.

    Raises:
        OSError: A local shard cannot be opened.
        ShardError: A remote one cannot be fetched.
        DataError: It is larger than the cache of remote shards.
    """
    if isinstance(path, RemotePath):
        from shardsieve.shards.remote import ShardCache, look_up

        return ShardCache.of_user().open(look_up(path.url))
    return os.open(path, os.O_RDONLY)


class ShardFiles:
    """Open shards by path; every process opens its own on first use. Not for several threads."""

    def __init__(self, paths: Sequence[ShardPath], most_open: int = 64) -> None:
        self._paths = paths
        self._most_open = most_open
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_most_open": self._most_open, "_open": {}}

    def path(self, shard: int) -> ShardPath:
        """Where a shard lies."""
        return self._paths[shard]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Reads a byte range.

        Raises:
            ShardError: The shard is gone, or shorter than when it was indexed.
        """
        descriptor = self.descriptor(shard)
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise ShardError(
                f"{self._paths[shard]} at byte {offset:,}: {error.strerror}. "
                "It was there when it was indexed; bring it back and run again"
            ) from error
        if len(data) < size:
            raise ShardError(
                f"{self._paths[shard]} at byte {offset:,}: {size:,} bytes expected, "
                f"{len(data):,} found. The shard changed since it was indexed; run again"
            )
        return data

    def descriptor(self, shard: int) -> int:
        """Returns the open file of a shard, which stays open until many others were asked for.

        Raises:
            ShardError: The shard is gone.
        """
        if shard not in self._open:
            while len(self._open) >= self._most_open:
                os.close(self._open.pop(next(iter(self._open))))
            try:
                self._open[shard] = open_shard(self._paths[shard])
            except OSError as error:
                raise ShardError(
                    f"{self._paths[shard]}: {error.strerror}. "
                    "It was there when it was indexed; bring it back and run again"
                ) from error
        return self._open[shard]

    def close(self) -> None:
        """Closes what is open."""
        while self._open:
            os.close(self._open.popitem()[1])
