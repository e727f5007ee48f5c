"""Where a shard is: a local file, or a URL."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PIPE = "pipe:"


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A shard that is no local file; what reads it reads a copy of it.

    Attributes:
        url: `s3://...`, `https://...` or any other protocol of fsspec's, or `pipe:COMMAND`.
    """

    url: str

    @property
    def name(self) -> str:
        """Its file name: what follows the last slash, without a query."""
        if self.url.startswith(PIPE):
            return "pipe-" + hashlib.sha256(self.url.encode()).hexdigest()[:12] + ".tar"
        return self.url.rstrip("/").rpartition("/")[2].partition("?")[0]

    def __str__(self) -> str:
        return self.url


ShardPath = Path | RemotePath


def is_remote(location: str) -> bool:
    """Tells a URL or a `pipe:` command from a path."""
    return location.startswith(PIPE) or "://" in location


def shard_path(location: str) -> ShardPath:
    """Reads what `str` made of a path or URL."""
    return RemotePath(location) if is_remote(location) else Path(location)
