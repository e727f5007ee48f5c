"""The work of a stage, shard by shard, and who does it: a stage does not know where it runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shardsieve.config import Precision
from shardsieve.progress import Advance

if TYPE_CHECKING:
    import torch

# In the folder that a job writes to: where workers elsewhere make their files.
MEETING = "from-workers"

# Each has a batch and a part of the memory of the network.
_MOST_LANES = 64

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


class Local:
    """Everything in this process."""

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
        """One per core; beside a GPU at most 8."""
        if asked is not None:
            return asked
        return usable_cores() if device.type == "cuda" else usable_cores(most=_MOST_LANES)

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


def _silent(amount: int) -> None:
    pass


def usable_cores(most: int = 8) -> int:
    """Returns how many cores this process may use, at most `most`."""
    # Not every system can say which cores this process may use.
    allowed = getattr(os, "sched_getaffinity", None)
    return min(most, len(allowed(0)) if allowed else os.cpu_count() or 1)
