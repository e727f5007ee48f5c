"""The engine `local`: the work of all stages in this process, or in others of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shardsieve.config import Precision
from shardsieve.engines.executor import MEETING, Job, P, R, Training, Work
from shardsieve.progress import Advance, Progress, Silent, console_progress

if TYPE_CHECKING:
    import torch

    from shardsieve.engines.processes import Group

# Each has a batch and a part of the memory of the network.
_MOST_LANES = 64
# Processes, each with the memory of an interpreter.
_MOST_LOADERS = 32
# Threads that read; more wait for the disk.
_MOST_CORES = 8


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
