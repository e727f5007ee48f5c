"""The actors of one job: how many there are, what each has been given, and who was lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardsieve.engines.executor import Job
from shardsieve.engines.ray_worker import Done, Place, ShardWorker
from shardsieve.errors import DataError
from shardsieve.progress import Progress

# How often the size of the cluster is looked at, and after which time a wait is told, seconds.
_LOOK_S = 5.0
_PATIENCE_S = 30.0
_MOST_FAILED_STARTS = 4


@dataclass(frozen=True, slots=True)
class Lost:
    """A piece whose worker is gone.

    Attributes:
        why: What Ray says.
        counts: 1 if the worker had begun it, 0 if it had only been given it.
    """

    why: str
    counts: int = 1


class _Worker:
    """One actor, seen from the driver."""

    def __init__(self, actor: Any) -> None:
        self.actor, self._stage = actor, ""
        self.name: str | None = None
        self.given: list[int] = []
        self.waits_for: Any = None

    def prepare(self, job: Job[Any, Any], threads: int) -> None:
        self.name, self._stage = None, job.stage
        self.waits_for = self.actor.prepare.options(name=f"shardsieve.{job.stage} prepare").remote(
            job.make, threads
        )

    def give(self, numbers: list[int], pieces: Sequence[Any], place: Place) -> None:
        self.given = numbers
        # A result waits on the worker's side until it is asked for: memory stays bounded.
        options = self.actor.run.options(
            num_returns="streaming",
            name=f"shardsieve.{self._stage}",
            _generator_backpressure_num_objects=4,
        )
        self.waits_for = options.remote(pieces, place)


class Pool:
    """Actors that do the pieces of one job after the other."""

    def __init__(self, cpus: int, gpus: int, most: int | None, progress: Progress) -> None:
        """Takes what each actor asks the cluster for.

        Args:
            cpus: Cores of each.
            gpus: GPUs of each.
            most: Most actors; default: as many as the cluster has room for.
            progress: Where to report.
        """
        import ray

        self.cpus, self.gpus, self._most = cpus, gpus, most
        self._progress = progress
        self._job: Job[Any, Any] | None = None
        self._class = ray.remote(ShardWorker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._workers: list[_Worker] = []
        self._by: dict[int, str] = {}
        self._rates: dict[str, tuple[int, int, float]] = {}
        self._room, self._looked = 1, 0.0
        self._failed_starts, self._began, self._told = 0, 0.0, False

    def warm_up(self, n_pieces: int, modules: Sequence[str]) -> None:
        """Starts actors, as many as there will be work and room for, that load modules meanwhile.

        Args:
            n_pieces: How many there will be.
            modules: Names; one that cannot be loaded is for the job that needs it.
        """
        for _ in range(min(self._most or self._look(), n_pieces)):
            worker = _Worker(self._class.remote())
            worker.actor.load.remote(modules)
            self._workers.append(worker)

    def take(self, job: Job[Any, Any]) -> None:
        """Begins a job: actors that are there load what it needs."""
        self._job, self._by, self._rates = job, {}, {}
        self._failed_starts, self._began, self._told = 0, time.monotonic(), False
        for worker in self._workers:
            worker.prepare(job, self._threads)

    @property
    def _threads(self) -> int:
        # Networks on a GPU leave the cores to those who decode.
        return self.cpus if self._job is not None and self._job.device == "cpu" else 0

    @property
    def _stage(self) -> str:
        return self._job.stage if self._job is not None else ""

    def __len__(self) -> int:
        return max(1, len(self._workers))

    def grow(self, n_pieces: int) -> None:
        """Starts actors that are missing, as many as there is work and room for.

        With a number of workers that was asked for, those the cluster has no room for yet make it
        grow if it can; without one, the pool follows the size of the cluster.
        """
        assert self._job is not None, "take comes first"
        wanted = min(self._most or self._look(), n_pieces)
        while len(self._workers) < wanted:
            worker = _Worker(self._class.remote())
            worker.prepare(self._job, self._threads)
            self._workers.append(worker)
        waited = time.monotonic() - self._began
        if not self._told and waited > _PATIENCE_S and not any(w.name for w in self._workers):
            self._told = True
            self._progress.note(
                f"{self._stage}: waiting for a worker: {self.cpus} cores"
                + (f" and {self.gpus} GPU" if self.gpus else "")
                + " each; the cluster has none free, or they are still loading"
            )

    def idle(self) -> _Worker | None:
        """Returns an actor that has nothing to do."""
        free = (worker for worker in self._workers if worker.waits_for is None)
        return next(free, None)

    def finished(self) -> Iterator[tuple[int, Done | Lost]]:
        """Waits for something to happen, and yields pieces that are done or lost.

        Raises:
            ShardsieveError: What the work raised.
        """
        import ray

        by_wait = {w.waits_for: w for w in self._workers if w.waits_for is not None}
        ready, _ = ray.wait(list(by_wait), timeout=_LOOK_S, fetch_local=False)
        for waited in ready:
            worker = by_wait[waited]
            try:
                if worker.name is None:
                    worker.name = ray.get(waited)
                    worker.waits_for = None
                    self._failed_starts = 0
                    continue
                try:
                    done = ray.get(next(waited))
                except StopIteration:
                    worker.waits_for = None
                    continue
                number = worker.given.pop(0)
                self._by[number] = worker.name
                yield number, done
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                yield from self._lost(worker, error)

    def note(self, number: int, amount: int, seconds: float) -> None:
        """Counts a piece for its worker's rate."""
        name = self._by.pop(number)
        pieces, amounts, total = self._rates.get(name, (0, 0, 0.0))
        self._rates[name] = (pieces + 1, amounts + amount, total + seconds)

    def rates(self) -> dict[str, tuple[int, int, float]]:
        """Returns pieces, amount and seconds of work of each worker."""
        return self._rates

    def close(self) -> None:
        """Ends all actors."""
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()

    def _lost(self, worker: _Worker, error: Exception) -> Iterator[tuple[int, Lost]]:
        self._workers.remove(worker)
        why = str(error).strip().splitlines()[0]
        if worker.name is None:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise DataError(
                    f"{self._stage}: workers die while they start, {_MOST_FAILED_STARTS} in a "
                    f"row ({why}). Ray's logs on that node say more"
                ) from error
            return
        self._progress.note(
            f"{self._stage}: worker {worker.name} was lost; its {len(worker.given)} unfinished "
            "shards go to others"
        )
        for place, number in enumerate(worker.given):
            yield number, Lost(why, counts=int(place == 0))

    def _look(self) -> int:
        """Returns how many actors the cluster has room for, at least one."""
        import ray

        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked = now
            has = ray.cluster_resources()
            room = has.get("GPU", 0) // self.gpus if self.gpus else has.get("CPU", 0) // self.cpus
            self._room = max(1, int(room))
        return self._room
