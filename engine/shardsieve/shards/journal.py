"""Which output shards of an interrupted write are whole."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

from shardsieve.shards.copy import CopiedShard

# Goes with the other unfinished files when the stage is committed.
_FILE = "written.jsonl.part"


class Journal:
    """A line per finished output shard, in the folder of a write that is at work.

    The folder belongs to one identity, so a file of this name and size can only be the same shard:
    it got its name after its bytes had reached the disk.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what an interrupted call left; a line that was cut off is left out."""
        self._path = folder / _FILE
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._take(line)
        # After half a line, the next one begins on its own.
        self._add_text("\n" if self._path.is_file() else "")

    @classmethod
    def of_finished(cls, folder: Path, facts: dict[str, Any]) -> None:
        """Writes the journal anew from the record of a write whose shards have suffered."""
        (folder / _FILE).unlink(missing_ok=True)
        journal = cls(folder)
        for name in ("clean", "removed"):
            for shard in facts.get(name, []):
                journal.add(CopiedShard(**shard))

    def add(self, shard: CopiedShard) -> None:
        """Notes a shard that is whole; may be called by several threads."""
        with self._lock:
            self._add_text(json.dumps(dataclasses.asdict(shard)) + "\n")

    def find(self, path: Path) -> CopiedShard | None:
        """Returns what is known of a shard if it is there with the size it was noted with."""
        known = self._known.get(path.name)
        if known is None or not path.is_file() or path.stat().st_size != known["size_bytes"]:
            return None
        return CopiedShard(**known)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            self._known[CopiedShard(**row).file] = row
        except (ValueError, TypeError):
            return

    def _add_text(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
