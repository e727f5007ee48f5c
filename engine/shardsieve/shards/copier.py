"""Output shards of a layout, copied one by one wherever the input can be read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardsieve.data.location import ShardPath
from shardsieve.progress import Advance
from shardsieve.shards.copy import CopiedShard, Ranges, copy_ranges
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.layout import Layout

_MOST_OPEN = 128


@dataclass(frozen=True, slots=True)
class Output:
    """An output shard.

    Attributes:
        number: Its number in its set.
        layout: Where its bytes come from; None when `cut` has said it.
        ranges: (R, 3) shard, start and end, bytes; None where the layout says it.
        source: Number of the input shard it is cut from, None when there are several.
        name: Its file name.
        samples: How many samples it holds.
    """

    number: int
    layout: Layout | None
    ranges: Ranges | None = None
    source: int | None = None
    name: str = ""
    samples: int = 0

    def cut(self) -> Output:
        """Returns it apart from the layout, with its ranges."""
        if self.layout is None:
            return self
        layout, number = self.layout, self.number
        return Output(
            number,
            None,
            layout.ranges(number),
            layout.source(number),
            layout.file(number),
            len(layout.rows(number)),
        )


def cut(pieces: Sequence[Output]) -> list[Output]:
    """Returns output shards apart from their layout, for where that is not."""
    return [piece.cut() for piece in pieces]


def samples_of(shard: CopiedShard) -> int:
    """Returns how many samples a shard holds."""
    return shard.samples


class ShardCopier:
    """Copies shards together, wherever the input can be read."""

    def __init__(self, paths: Sequence[ShardPath], to: str | None, sha256: bool) -> None:
        """Takes what all output shards share.

        Args:
            paths: The input shards by number.
            to: A URL under which they are uploaded as well.
            sha256: Whether to hash them.
        """
        self._opened = _PerThread(paths)
        self._to, self._sha256 = to, sha256

    def run(self, pieces: Sequence[Output], out: Path, advance: Advance) -> Iterator[CopiedShard]:
        """Copies output shards, and uploads them where that is asked for."""
        for piece in pieces:
            whole = piece.cut()
            assert whole.ranges is not None
            target = out / whole.name
            size, sha256 = copy_ranges(
                self._opened.files, whole.ranges, target, sha256=self._sha256
            )
            if self._to is not None:
                # fsspec is loaded by those who need it.
                from shardsieve.shards.remote import Store

                # Before it is noted as finished: what is has arrived.
                Store(self._to).put(target)
            advance(whole.samples)
            yield CopiedShard(whole.name, whole.source, whole.samples, size, sha256)

    def close(self) -> None:
        """Closes the shards that were read from."""
        self._opened.close()


class _PerThread:
    """Open shards of each thread: what one closes, another must not be reading."""

    def __init__(self, paths: Sequence[ShardPath]) -> None:
        self._paths = paths
        self._local = threading.local()
        self._all: list[ShardFiles] = []

    @property
    def files(self) -> ShardFiles:
        if not hasattr(self._local, "files"):
            self._local.files = ShardFiles(self._paths, _MOST_OPEN)
            self._all.append(self._local.files)
        files: ShardFiles = self._local.files
        return files

    def close(self) -> None:
        for files in self._all:
            files.close()
