"""The clean shards under a URL as well: each is uploaded when it is whole."""

from __future__ import annotations

from pathlib import Path

from shardsieve.errors import DataError, ShardError
from shardsieve.shards.remote import Store

# Under the URL of uploaded shards: the run they came from.
_MARKER = "written-by.txt"


class Upload:
    """A place for the shards of one run.

    An object store shows an object only when all of it has arrived, so what is there is whole.
    """

    def __init__(self, url: str, run: Path) -> None:
        """Claims the place before its first shard: a kill must not make it foreign.

        Args:
            url: Under which the shards go, such as `s3://bucket/clean`.
            run: The run directory, by which the place is known as ours when it is written again.

        Raises:
            DataError: Shards of something else lie there.
            ShardError: It cannot be reached or written to.
        """
        self._store = Store(url)
        owner = self._store.read_text(_MARKER)
        if owner != str(run) and self._store.sizes("clean-*.tar"):
            raise DataError(
                f"write.to = {url}: holds shards of {owner or 'something else'}; "
                "choose an empty place"
            )
        self._store.write_text(_MARKER, str(run))

    def put(self, path: Path) -> None:
        """Uploads a finished file under its own name.

        Raises:
            ShardError: It cannot be written there.
        """
        self._store.put(path)

    def finish(self, shards: dict[str, int]) -> None:
        """Deletes shards of an earlier, larger set and makes sure that all others are there.

        Args:
            shards: Size in bytes by name.

        Raises:
            ShardError: One is missing or has another size.
        """
        there = self._store.sizes("clean-*.tar")
        for name in there.keys() - shards.keys():
            self._store.delete(name)
        wrong = [name for name, size in shards.items() if there.get(name) != size]
        if wrong:
            raise ShardError(
                f"{self._store.url}: {len(wrong)} shards have not arrived, first "
                f"{wrong[0]}; run `shardsieve write` again"
            )
