"""Open shards, read by byte range."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shardsieve.errors import ShardError


class ShardFiles:
    """Open shards by path; every process opens its own on first use. Not for several threads."""

    def __init__(self, paths: list[Path], most_open: int = 64) -> None:
        self._paths = paths
        self._most_open = most_open
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_most_open": self._most_open, "_open": {}}

    def path(self, shard: int) -> Path:
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
                self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
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
