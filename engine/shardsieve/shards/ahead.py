"""Remote shards fetched while those before them are worked on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shardsieve.data.location import RemotePath, ShardPath
from shardsieve.errors import ShardsieveError

if TYPE_CHECKING:
    from shardsieve.shards.remote import ShardCache

# Connections, and shards that lie finished before they are due.
SHARDS_AHEAD = 3
THREAD_NAME = "shardsieve-ahead"


class Ahead:
    """Fetches the shards after the one that is worked on into the cache, several at a time.

    Who reads a shard still opens it by itself: it waits for a fetch that is under way, and is told
    what went wrong. Shards on disk are left alone. Leaving the context ends no fetch that is under
    way, but nor does anything wait for it.
    """

    def __init__(self, paths: Sequence[ShardPath]) -> None:
        """Takes the shards in the order in which they will be worked on."""
        self._paths = paths
        self._due = 0
        self._queue: SimpleQueue[RemotePath | None] = SimpleQueue()
        remote = sum(isinstance(path, RemotePath) for path in paths)
        self._threads = min(SHARDS_AHEAD, remote)

    def __enter__(self) -> Self:
        """Begins to listen for what is due.

        Raises:
            ConfigError: The size of the cache is no number.
        """
        if self._threads:
            # fsspec is loaded by those who need it.
            from shardsieve.shards.remote import ShardCache

            cache = ShardCache.of_user()
            for _ in range(self._threads):
                # A daemon: an interrupted command need not wait for a gigabyte.
                threading.Thread(
                    target=self._fetch, args=(cache,), name=THREAD_NAME, daemon=True
                ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                break
        for _ in range(self._threads):
            self._queue.put(None)

    def reached(self, at: int) -> None:
        """Is told which shard is worked on, by its place in the order."""
        stop = min(at + 1 + SHARDS_AHEAD, len(self._paths))
        for path in self._paths[self._due : stop]:
            if isinstance(path, RemotePath):
                self._queue.put(path)
        self._due = max(self._due, stop)

    def _fetch(self, cache: ShardCache) -> None:
        from shardsieve.shards.remote import look_up

        while (path := self._queue.get()) is not None:
            try:
                shard = look_up(path.url)
                # In a smaller cache it would push out the ones that come before it.
                if shard.size_bytes * (SHARDS_AHEAD + 1) <= cache.max_bytes:
                    cache.local(shard)
            except (ShardsieveError, OSError):
                # Who opens the shard tries again, and says what is wrong.
                continue
