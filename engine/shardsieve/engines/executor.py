"""The work of a stage, shard by shard, and who does it: a stage does not know where it runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shardsieve.config import Precision
from shardsieve.progress import Advance, Progress, Silent, console_progress

if TYPE_CHECKING:
    import torch

    from shardsieve.engines.processes import Group

# In the folder that a job writes to: where workers elsewhere make their files.
MEETING = "from-workers"

# Each has a batch and a part of the memory of the network.
_MOST_LANES = 64
# Processes, each with the memory of an interpreter.
_MOST_LOADERS = 32
# Threads that read; more wait for the disk.
_MOST_CORES = 8

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[P_contra, R_co]):
    """What is done with the pieces, with all that is loaded once for it."""

    def run(self, pieces: Sequence[P_contra], out: Path, advance: Advance) -> Iterator[R_co]:
        """Yields a result for each piece in order.

        By then its files lie in `out`, whole and under their own names, and nothing else that is
        whole; threads may call this side by side.

        Args:
            pieces: One or several.
            out: The folder.
            advance: Is told how many units were done.
        """
        ...

    def close(self) -> None:
        """Lets go of what is open."""
        ...


class Training(Protocol[R_co]):
    """What each of the processes calls that train together."""

    def __call__(self, group: Group, out: Path, progress: Progress) -> R_co:
        """Trains.

        Args:
            group: The processes, seen from one of them.
            out: Folder of the results. It may hold what an earlier start left in `*.part`.
            progress: Where to report.
        """
        ...


def _as_they_are(pieces: Sequence[Any]) -> Sequence[Any]:
    return pieces


@dataclass(frozen=True, slots=True)
class Job(Generic[P, R]):
    """What a stage does with each of its shards.

    Attributes:
        stage: Its name.
        unit: What is counted, for people.
        make: Loads once what all pieces need, and returns the work; can be pickled.
        amount: How many units a result stands for.
        detach: Gives pieces what they need where nothing else of the run is; can be pickled.
        device: Where the networks of it run; None where there are none.
    """

    stage: str
    unit: str
    make: Callable[[], Work[P, R]]
    amount: Callable[[R], int]
    detach: Callable[[Sequence[P]], Sequence[P]] = _as_they_are
    device: str | None = None


class Executor(Protocol):
    """Does the work of a stage somewhere."""

    def start(self, device: str, n_shards: int) -> None:
        """Begins with what takes a while before networks can run.

        Args:
            device: The setting of where they will.
            n_shards: How many there are; more workers are of no use.

        Raises:
            ConfigError: The cluster cannot be reached.
        """
        ...

    def leave(self) -> None:
        """Is told that nothing more will be asked; what is held for it can go meanwhile."""
        ...

    def device(self, name: str) -> torch.device:
        """Returns where the networks of a job run.

        Raises:
            DeviceUnavailable: It was named and cannot be used.
        """
        ...

    def device_here(self, name: str) -> str:
        """Returns the setting for the stages that run in this process in any case."""
        ...

    def devices(self, one: torch.device) -> list[torch.device]:
        """Returns all devices like this that one worker can share its shards out to."""
        ...

    def precision(self, precision: Precision, device: torch.device) -> Precision:
        """Chooses the number format for that device.

        Raises:
            DeviceUnavailable: The device cannot compute in it.
        """
        ...

    def decoders(self, asked: int | None, device: torch.device) -> int:
        """Returns how many processes decode images beside each network.

        Args:
            asked: The setting `workers`.
            device: Where the network runs.
        """
        ...

    def map(
        self, job: Job[P, R], pieces: Sequence[P], out: Path, advance: Advance, *, threads: int = 0
    ) -> Iterator[tuple[P, R]]:
        """Does every piece and yields it with its result, in the order in which they are done.

        When a piece is yielded, its files lie in `out`. What was done stays there when this ends
        early.

        Args:
            job: What is done.
            pieces: The pieces.
            out: Folder of the files that come out.
            advance: Is told how many units were done.
            threads: Pieces side by side in one process; 0: one stream, which may read ahead.

        Raises:
            ShardsieveError: What the work raises.
        """
        ...

    def processes(self, stage: str, asked: int, device: torch.device, most: int) -> int:
        """Returns how many processes share the steps of a training.

        Args:
            stage: Whose training it is.
            asked: The setting; 1 lets the engine choose.
            device: Where each runs its network.
            most: More are of no use.

        Raises:
            ConfigError: One device was named, and several are asked for.
            DeviceUnavailable: There are fewer GPUs.
        """
        ...

    def decoders_together(self, asked: int | None, device: torch.device, processes: int) -> int:
        """Returns how many processes decode images for a training, in all.

        Args:
            asked: The setting `workers`.
            device: Where each process runs its network.
            processes: How many train.
        """
        ...

    def together(
        self,
        stage: str,
        training: Training[R],
        processes: int,
        device: torch.device,
        out: Path,
        progress: Progress,
    ) -> R:
        """Trains in several processes; returns what the one that leads returned.

        Args:
            stage: Whose training it is.
            training: What each of them calls; can be pickled.
            processes: How many.
            device: Where each runs its network.
            out: Folder of the results.
            progress: Where to report.

        Raises:
            ShardsieveError: What the training raises.
        """
        ...


class Local:
    """Everything in this process."""

    def start(self, device: str, n_shards: int) -> None:
        """Nothing that could begin early."""

    def leave(self) -> None:
        """Nothing is held."""

    def device(self, name: str) -> torch.device:
        """As asked, or the GPU if there is one."""
        # torch takes seconds to load.
        from shardsieve.models.precision import resolve_device

        return resolve_device(name)

    def device_here(self, name: str) -> str:
        """The same."""
        return name

    def devices(self, one: torch.device) -> list[torch.device]:
        """All GPUs of this machine, unless one was named by its number."""
        import torch

        if one.type != "cuda" or one.index is not None:
            return [one]
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]

    def precision(self, precision: Precision, device: torch.device) -> Precision:
        """As this machine can."""
        from shardsieve.models.precision import resolve_precision

        return resolve_precision(precision, device)

    def decoders(self, asked: int | None, device: torch.device) -> int:
        """One per core."""
        return cores_for(asked, _MOST_LANES)

    def map(
        self, job: Job[P, R], pieces: Sequence[P], out: Path, advance: Advance, *, threads: int = 0
    ) -> Iterator[tuple[P, R]]:
        """In one stream, or in threads."""
        # What a call on a cluster left when it was killed.
        shutil.rmtree(out / MEETING, ignore_errors=True)
        work = job.make()
        try:
            if threads:
                yield from self._side_by_side(job, work, pieces, out, advance, threads)
            else:
                yield from zip(pieces, work.run(pieces, out, advance), strict=True)
        finally:
            work.close()

    def processes(self, stage: str, asked: int, device: torch.device, most: int) -> int:
        """As many as asked for."""
        from shardsieve.engines.processes import check_processes

        check_processes(asked, device, stage)
        return asked

    def decoders_together(self, asked: int | None, device: torch.device, processes: int) -> int:
        """One per core; on a CPU at most 8."""
        # A GPU waits for them, a CPU shares its cores.
        return cores_for(asked, _MOST_LOADERS if device.type == "cuda" else _MOST_CORES)

    def together(
        self,
        stage: str,
        training: Training[R],
        processes: int,
        device: torch.device,
        out: Path,
        progress: Progress,
    ) -> R:
        """In this process, or in several that torch elastic starts."""
        from shardsieve.engines.processes import Group, check_processes, run_in

        check_processes(processes, device, stage)
        # What a call on a cluster left when it was killed.
        shutil.rmtree(out / MEETING, ignore_errors=True)
        if processes == 1:
            return training(Group(device), out, progress)
        call = partial(_in_process, training, out, not isinstance(progress, Silent))
        return run_in(processes, device.type, out, call)

    def _side_by_side(
        self,
        job: Job[P, R],
        work: Work[P, R],
        pieces: Sequence[P],
        out: Path,
        advance: Advance,
        threads: int,
    ) -> Iterator[tuple[P, R]]:
        def one(piece: P) -> R:
            (result,) = work.run([piece], out, _silent)
            return result

        with ThreadPoolExecutor(threads, thread_name_prefix=job.stage) as pool:
            futures = {pool.submit(one, piece): piece for piece in pieces}
            try:
                for future in as_completed(list(futures)):
                    result = future.result()
                    advance(job.amount(result))
                    yield futures.pop(future), result
            except GeneratorExit:
                pool.shutdown(cancel_futures=True)
                raise
            except BaseException:
                # What is being done is finished and counts, the rest is for the next call.
                pool.shutdown(cancel_futures=True)
                for future, piece in futures.items():
                    if not future.cancelled() and future.exception() is None:
                        yield piece, future.result()
                raise


def _in_process(training: Training[R], out: Path, reports: bool, group: Group) -> R:
    return training(group, out, console_progress() if reports and group.leads else Silent())


def _silent(amount: int) -> None:
    pass


def usable_cores(most: int = _MOST_CORES) -> int:
    """Returns how many cores this process may use, at most `most`."""
    # Not every system can say which cores this process may use.
    allowed = getattr(os, "sched_getaffinity", None)
    return min(most, len(allowed(0)) if allowed else os.cpu_count() or 1)


def cores_for(asked: int | None, most: int = _MOST_CORES) -> int:
    """Returns the setting `workers`, or as many as there are cores, at most `most`."""
    return usable_cores(most) if asked is None else asked
