"""What runs in the workers of a Ray cluster: the work of a stage, and how its files come back."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.data.table import replace_file
from shardsieve.engines.executor import MEETING, Work
from shardsieve.environment import set_up

# A file comes back in pieces of this size: the driver never holds more of it.
PIECE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a job go.

    Attributes:
        out: The folder, as the driver sees it.
        token: Name of a folder under `out / MEETING`. A worker that finds it has that folder on a
            shared disk and writes there; one of an earlier call finds it gone.
    """

    out: Path
    token: str

    @property
    def meeting(self) -> Path:
        """The folder by which a worker knows that it sees the driver's."""
        return self.out / MEETING / self.token


@dataclass(frozen=True, slots=True)
class Done:
    """A finished piece.

    Attributes:
        result: What the work yielded.
        seconds: Wall time it took.
        files: Name and content of each file in pieces, in the order in which they were finished;
            none where the worker put them in their place itself.
    """

    result: Any
    seconds: float
    files: list[tuple[str, list[Any]]]


class ShardWorker:
    """An actor: loads what a job needs once, then does pieces until there are no more."""

    def __init__(self) -> None:
        """Starts; nothing is loaded yet."""
        set_up()
        self._work: Work[Any, Any] | None = None

    def __repr__(self) -> str:
        """The name under which Ray's dashboard and logs show it."""
        return "shardsieve"

    def load(self, modules: Sequence[str]) -> None:
        """Loads modules that take seconds, before they are needed."""
        for name in modules:
            import_module(name)

    def prepare(self, make: Callable[[], Work[Any, Any]], torch_threads: int) -> str:
        """Loads what a job needs and returns the name of this worker.

        Args:
            make: Makes the work.
            torch_threads: Threads of one operation of torch; 0 where it is not used.

        Raises:
            ShardsieveError: What is needed cannot be had here.
        """
        if self._work is not None:
            self._work.close()
            self._work = None
        if torch_threads:
            import torch

            torch.set_num_threads(torch_threads)
        self._work = make()
        return f"{socket.gethostname()}/{os.getpid()}"

    def run(self, pieces: Sequence[Any], place: Place) -> Iterator[Done]:
        """Does pieces and yields each when its files are in place or on their way.

        Raises:
            ShardsieveError: What the work raises.
        """
        assert self._work is not None, "prepare comes first"
        with _folder(place) as (folder, shared):
            start = time.perf_counter()
            for result in self._work.run(pieces, folder, _silent):
                files = [] if shared else [_content(path) for path in _finished(folder)]
                if shared:
                    _put_in_place(_finished(folder), place.out)
                yield Done(result, time.perf_counter() - start, files)
                start = time.perf_counter()


def save(name: str, pieces: Iterator[np.ndarray[Any, Any]], out: Path) -> None:
    """Writes a file that came back, whole or not at all."""
    temporary = out / (name + ".part")
    with temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece.data)
    replace_file(temporary, out / name)


@contextmanager
def _folder(place: Place) -> Iterator[tuple[Path, bool]]:
    """Gives a folder of this worker's own, on the driver's disk if that is seen from here."""
    try:
        own = place.meeting / uuid.uuid4().hex
        own.mkdir()
        shared = True
    except OSError:
        own, shared = Path(tempfile.mkdtemp(prefix="shardsieve-")), False
    try:
        yield own, shared
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _finished(folder: Path) -> list[Path]:
    whole = [path for path in folder.iterdir() if path.suffix != ".part"]
    return sorted(whole, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _put_in_place(files: list[Path], out: Path) -> None:
    for path in files:
        # Its bytes are on the disk; the names are synced when the stage is committed.
        path.replace(out / path.name)


def _content(path: Path) -> tuple[str, list[Any]]:
    """Hands a file to Ray's object store, which moves it to the driver, and removes it here."""
    import ray

    pieces = []
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            pieces.append(ray.put(np.frombuffer(data, np.uint8)))
    path.unlink()
    return path.name, pieces


def _silent(amount: int) -> None:
    pass
