"""Appending decisions so that none is lost, and taking them back."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from shardsieve.data.decisions import FILE, Decision, SampleName, parse_decisions
from shardsieve.data.disk import sync_folder
from shardsieve.errors import DataError


class DecisionLog:
    """`decisions.jsonl` of a run, open for appending. May be used by several threads.

    A call that returns has reached the disk: neither a kill nor a power cut loses it. Other
    processes may append at the same time.
    """

    def __init__(self, run: Path) -> None:
        """Reads what is there, and mends an end that was cut off.

        Raises:
            DataError: The file cannot be read, or holds something else.
        """
        self._file = run / FILE
        self._lock = threading.Lock()
        with self._opened() as descriptor:
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            decisions = parse_decisions(data, self._file)
            _cut_torn_end(descriptor)
        self.torn = decisions.torn
        self._standing = decisions.standing
        # What undo goes back through: sample, and what stood before.
        self._undoable: list[tuple[SampleName, Decision | None]] = []
        seen: dict[SampleName, Decision] = {}
        for one in decisions.history:
            self._remember(one, seen.get(one.sample))
            seen[one.sample] = one

    @property
    def standing(self) -> dict[SampleName, Decision]:
        """A copy of the decisions that stand."""
        with self._lock:
            return dict(self._standing)

    def add(self, decisions: Iterable[Decision]) -> int:
        """Appends decisions, all of them or, at a kill, the first of them.

        Returns:
            How many.

        Raises:
            DataError: They cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        stamped = [one if one.time else one.model_copy(update={"time": now}) for one in decisions]
        with self._lock:
            self._append(stamped)
            for one in stamped:
                self._remember(one, self._standing.get(one.sample))
                self._stand(one)
        return len(stamped)

    def undo(self) -> Decision | None:
        """Takes back the last decision that still stands.

        Returns:
            What holds for its sample now (`none` if nothing does); None if there is nothing left
            to take back.

        Raises:
            DataError: It cannot be written.
        """
        with self._lock:
            if not self._undoable:
                return None
            sample, before = self._undoable[-1]
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            if before is None:
                before = Decision(**sample._asdict(), decision="none")
            restored = before.model_copy(update={"time": now, "takes_back": True})
            self._append([restored])
            self._undoable.pop()
            self._stand(restored)
            return restored

    def _remember(self, one: Decision, before: Decision | None) -> None:
        if not one.takes_back:
            self._undoable.append((one.sample, before))
        elif self._undoable:
            self._undoable.pop()

    def _stand(self, one: Decision) -> None:
        if one.decision == "none":
            self._standing.pop(one.sample, None)
        else:
            self._standing[one.sample] = one

    def _append(self, decisions: list[Decision]) -> None:
        lines = [one.model_dump_json(exclude_defaults=True) + "\n" for one in decisions]
        data = "".join(lines).encode()
        with self._opened() as descriptor:
            _cut_torn_end(descriptor)
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, locked: two programs that review one run write one after the other."""
        try:
            is_new = not self._file.exists()
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if is_new:
                    sync_folder(self._file.parent)
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{self._file}: cannot be written to: {error.strerror}") from error


def _cut_torn_end(descriptor: int) -> None:
    """Cuts off a last line that is not whole: the next one must not be glued to it."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = os.pread(descriptor, size, 0)
        os.ftruncate(descriptor, data.rfind(b"\n") + 1)
