"""The run directory: where results lie, when they count as done, and who may write.

```
RUN/
  manifest.json          every count, hash, setting and version; rewritten after each stage
  config.toml            the settings of the last call
  index/  embed/  probe/  select/  tune/  report/
  clean/                 the filtered shards (stage `write`)
    stage.json           in each of them, written last: what the result was made from
  embed.part/            a stage at work; it gets its name when it is whole
```
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardsieve.data.record import StageRecord, content_key
from shardsieve.data.table import write_json
from shardsieve.errors import DataError, RunLocked

_FOLDERS = {"write": "clean"}
_RECORD = "stage.json"
_BEGUN = "begun.json"


class RunDir:
    """A folder with the results of the stages, each whole or absent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, stage: str) -> Path:
        """Where a finished stage lies."""
        return self.path / _FOLDERS.get(stage, stage)

    def record(self, stage: str) -> StageRecord | None:
        """Returns the record of a finished stage, None when there is none.

        Raises:
            DataError: The record is there but cannot be read.
        """
        file = self.folder(stage) / _RECORD
        return _read_record(file) if file.is_file() else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here; released when this one ends, however it ends.

        Raises:
            RunLocked: Another process has it.
            DataError: The folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a+")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written to: {error.strerror}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                handle.seek(0)
                raise RunLocked(
                    f"{self.path}: process {handle.read().strip() or '?'} works here. "
                    "Wait until it ends, or choose another folder"
                ) from error
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def begin(self, stage: str, identity: Mapping[str, Any]) -> Path:
        """Returns the folder to work in, with what an interrupted call of this identity left."""
        part = self._part(stage)
        begun = part / _BEGUN
        key = content_key(identity)
        if part.exists() and _begun_key(begun) != key:
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"key": key})
        return part

    def commit(self, record: StageRecord) -> None:
        """Gives the finished work its name."""
        part = self._part(record.stage)
        for leftover in part.rglob("*.part"):
            leftover.unlink()
        write_json(part / _RECORD, record.model_dump(mode="json"))
        self._publish(record.stage)

    def recover(self, stage: str) -> None:
        """Finishes a commit that was cut off between its record and its name."""
        if (self._part(stage) / _RECORD).is_file():
            self._publish(stage)

    def _publish(self, stage: str) -> None:
        final, part = self.folder(stage), self._part(stage)
        (part / _BEGUN).unlink(missing_ok=True)
        if final.exists():
            shutil.rmtree(final)
        part.replace(final)

    def _part(self, stage: str) -> Path:
        final = self.folder(stage)
        return final.with_name(final.name + ".part")


def _begun_key(begun: Path) -> str | None:
    try:
        key: str | None = json.loads(begun.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return key


def _read_record(file: Path) -> StageRecord:
    try:
        return StageRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file}: not a record of this version of shardsieve; "
            f"delete {file.parent} to make it anew"
        ) from error
