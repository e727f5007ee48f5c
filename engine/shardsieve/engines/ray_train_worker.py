"""What the workers of Ray Train do: the training, its progress and its files on their way."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardsieve.engines.ray_worker import PIECE_BYTES, Place
from shardsieve.environment import set_up
from shardsieve.errors import ShardsieveError
from shardsieve.progress import Advance, Silent

if TYPE_CHECKING:
    from shardsieve.engines.executor import Training

_TELL_S = 0.2


def work(packed: bytes, place: Place, host: Any) -> None:
    """Trains in one worker, once Ray Train has joined them all.

    Args:
        packed: A pickled `Training`.
        place: The folder of the results.
        host: The handle of the host.

    Raises:
        ShardsieveError: What the training raises.
    """
    # On a cluster that was there before, workers have its environment and not the command's.
    set_up()
    import ray
    import ray.train.torch
    import torch

    from shardsieve.engines.processes import Group

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    training: Training[Any] = pickle.loads(packed)
    with _folder(place, host) as (out, saved):
        device: torch.device = ray.train.torch.get_device()
        group = Group(device, rank, world, saved)
        if group.leads:
            ray.get(host.tell.remote("begins", ray.util.get_current_placement_group()))
        try:
            result = training(group, out, _Told(host) if group.leads else Silent())
        except ShardsieveError as error:
            # A lost worker is made good; this would happen again.
            ray.get(host.tell.remote("failed", error))
            raise
        if group.leads:
            saved()
            ray.get(host.tell.remote("result", result))


class _Told:
    """Progress that is passed on to the host."""

    def __init__(self, host: Any) -> None:
        self._host = host

    @contextmanager
    def track(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        self._tell("track", stage, total, unit, done)
        told, gathered = time.monotonic(), 0

        def advance(amount: int) -> None:
            nonlocal told, gathered
            gathered += amount
            if time.monotonic() - told > _TELL_S:
                self._tell("advance", gathered)
                told, gathered = time.monotonic(), 0

        yield advance
        self._tell("advance", gathered)
        self._tell("tracked")

    def note(self, text: str) -> None:
        self._tell("note", text)

    def _tell(self, *event: Any) -> None:
        import ray

        # Waited for, so that all comes in order, and nobody trains on for a command that is gone.
        ray.get(self._host.tell.remote(*event))


@contextmanager
def _folder(place: Place, host: Any) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Gives the folder of the results, or one here whose files are sent there when saved."""
    if place.meeting.is_dir():
        yield place.out, lambda: None
        return
    own = Path(tempfile.mkdtemp(prefix="shardsieve-"))
    try:
        sending = _Sending(own, host)
        sending.fetch()
        yield own, sending.send
    finally:
        shutil.rmtree(own, ignore_errors=True)


class _Sending:
    """Carries files of a folder to the host and back, piece by piece."""

    def __init__(self, folder: Path, host: Any) -> None:
        self._folder, self._host = folder, host
        self._sent: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Gets what an earlier start left unfinished."""
        import ray

        for name in ray.get(self._host.unfinished.remote()):
            with (self._folder / name).open("wb") as file:
                while piece := ray.get(self._host.read.remote(name, file.tell())):
                    file.write(piece)
            self._sent[self._folder / name] = _stamp(self._folder / name)

    def send(self) -> None:
        """Sends what is new; the state last, as it counts on what was there before it."""
        import ray

        files = [path for path in self._folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.suffix == ".part", path)):
            stamp = _stamp(path)
            if self._sent.get(path) == stamp:
                continue
            name = path.relative_to(self._folder).as_posix()
            with path.open("rb") as file:
                ray.get(self._host.write.remote(name, 0, b""))
                while piece := file.read(PIECE_BYTES):
                    ray.get(self._host.write.remote(name, file.tell() - len(piece), piece))
            ray.get(self._host.put_in_place.remote(name))
            self._sent[path] = stamp


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
