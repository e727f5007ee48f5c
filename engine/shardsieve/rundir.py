"""The run directory: where results lie, when they count as done, and who may write.

```
RUN/
  manifest.json          every count, hash, setting and version; rewritten after each stage
  config.toml            the settings of the last call
  decisions.jsonl        what people decided in a review; no stage writes or deletes it
  index/  embed/  probe/  select/  tune/  report/
  clean/                 the filtered shards (stage `write`)
    stage.json           in each of them, written last: what the result was made from
  embed.part/            a stage at work; it gets its name when it is whole
```
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardsieve.data.disk import sync_folder
from shardsieve.data.record import RECORD, StageRecord, content_key
from shardsieve.data.table import write_json
from shardsieve.errors import DataError, RunLocked

_FOLDERS = {"write": "clean"}
_STAGE_FOLDERS = ("index", "embed", "probe", "select", "tune", "report")
_BEGUN = "begun.json"


# Locks of this process. A forked child would keep them alive after a kill of its parent.
_held: set[int] = set()


def _release_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


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
        file = self.folder(stage) / RECORD
        return _read_record(file) if file.is_file() else None

    def lost_table(self, record: StageRecord) -> Path | None:
        """Returns a file of a finished stage that is gone, of those that its record hashes."""
        files = (self.folder(record.stage) / name for name in record.files)
        return next((file for file in files if not file.is_file()), None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here; released when this one ends, however it ends.

        Raises:
            RunLocked: Another process has it.
            DataError: The folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written to: {error.strerror}") from error
        _held.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
                raise RunLocked(
                    f"{self.path}: process {owner} works here. "
                    "Wait until it ends, or choose another folder"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            _held.discard(descriptor)
            os.close(descriptor)

    def refuse_foreign_folders(self, stages: Sequence[str], shards: Sequence[Path]) -> None:
        """Makes sure that nothing is replaced which is not ours.

        Raises:
            DataError: A folder has the name of a stage's but no record of one, or holds input.
        """
        for stage in stages:
            for folder, marks in (
                (self.folder(stage), (RECORD,)),
                (self._part(stage), (_BEGUN, RECORD, _BEGUN + ".part")),
            ):
                if not folder.exists():
                    continue
                ours = any((folder / mark).is_file() for mark in marks)
                if not ours and (not folder.is_dir() or any(folder.iterdir())):
                    raise DataError(
                        f"{folder} is there already and was not made by shardsieve; "
                        "choose another run directory, it would be replaced"
                    )
                inside = [path for path in shards if path.is_relative_to(folder.resolve())]
                if inside:
                    raise DataError(
                        f"{inside[0]} lies in {folder}, which this run would replace; "
                        "choose another run directory"
                    )

    def owns(self, path: Path) -> bool:
        """Whether a path is, or lies in, a folder that a stage replaces as a whole."""
        folders = [path, *path.parents]
        return any(
            owned.resolve() in folders
            for stage in (*_STAGE_FOLDERS, "write")
            for owned in (self.folder(stage), self._part(stage))
        )

    def begin(self, stage: str, identity: Mapping[str, Any]) -> Path:
        """Returns the folder to work in, with what an interrupted call of this identity left.

        The identity may say more than the record's: what must not be mixed within one result.
        """
        part = self._part(stage)
        begun = part / _BEGUN
        key = content_key(identity)
        if part.exists() and _begun_key(begun) != key:
            _remove(part)
        part.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"key": key})
        return part

    def commit(self, record: StageRecord) -> None:
        """Gives the finished work its name, with the hashes of its files in its record."""
        part = self._part(record.stage)
        record = record.model_copy(update={"files": _hash_files(part)})
        write_json(part / RECORD, record.model_dump(mode="json"))
        self._publish(record.stage)

    def reopen(self, stage: str, identity: Mapping[str, Any]) -> None:
        """Turns a result that has lost a file back into unfinished work, for `begin` to go on with.

        Args:
            stage: One that is finished.
            identity: What `begin` will be called with.
        """
        final, part = self.folder(stage), self._part(stage)
        if part.exists():
            _remove(part)
        write_json(final / _BEGUN, {"key": content_key(identity)})
        final.replace(part)
        (part / RECORD).unlink()

    def recover(self, stage: str) -> None:
        """Finishes a commit that was cut off between its record and its name."""
        if (self._part(stage) / RECORD).is_file():
            self._publish(stage)

    def _publish(self, stage: str) -> None:
        final, part = self.folder(stage), self._part(stage)
        for leftover in part.rglob("*.part"):
            leftover.unlink()
        (part / _BEGUN).unlink(missing_ok=True)
        sync_folder(part)
        if final.exists():
            _remove(final)
        part.replace(final)
        sync_folder(final.parent)

    def _part(self, stage: str) -> Path:
        final = self.folder(stage)
        return final.with_name(final.name + ".part")


def _remove(folder: Path) -> None:
    """Deletes a folder, its marks last: what a kill leaves of it must still be known as ours."""
    for path in folder.iterdir():
        if path.name in (RECORD, _BEGUN):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.rmtree(folder)


def _hash_files(folder: Path) -> dict[str, str]:
    """Hashes what carries no checksum of its own and is not listed with one."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        own = path.suffix in (".part", ".tar") or path.match("features-*.arrow")
        if path.is_file() and not own and name not in (_BEGUN, RECORD):
            hashes[name] = hash_file(path)
    return hashes


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
