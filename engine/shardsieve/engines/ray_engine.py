"""The stages on a Ray cluster: actors that are given shards, and lost ones made good.

Ray places the actors, moves what they return and says when one is lost. Which shards are done is
known by the run directory alone, as it is on one machine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from shardsieve.config import Precision
from shardsieve.engines.executor import MEETING, Job, P, R, Training
from shardsieve.engines.ray_pool import Lost, Pool
from shardsieve.engines.ray_worker import Place, save
from shardsieve.errors import ConfigError, DataError, DeviceUnavailable
from shardsieve.progress import Advance, Progress

if TYPE_CHECKING:
    import torch

# A shard that takes its worker with it that often is taken for the cause.
_MOST_LOSSES = 4
# Only what is too large to be returned at once passes through the store of a cluster of our own.
_STORE_BYTES = 512 * 1024 * 1024
_LISTED_WORKERS = 16
_LOADED_BY_EMBED = ("shardsieve.stages.embed", "timm")
_QUIET = {
    # A cluster of our own tells nobody that it was used, and says nothing about GPUs it hides.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Seconds that a node has to start, on a machine that is busy with something else.
    "RAY_raylet_start_wait_time_s": "180",
}


class RayExecutor:
    """Does the work of stages on a Ray cluster; connects when there is something to do."""

    def __init__(
        self,
        progress: Progress,
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus: int | None = None,
    ) -> None:
        """Makes sure that Ray is there.

        Args:
            progress: Where to report.
            address: `auto` for the cluster that this machine belongs to, or `host:port`. Default:
                the one in RAY_ADDRESS, or else a cluster of this machine alone, made for this call.
            workers: Most workers; default: as many as the cluster has GPUs, or cores.
            cpus: Cores of one worker. Default: beside a GPU, its share of the node's; else 1.

        Raises:
            ConfigError: Ray is not installed, or the address is of a kind that does not work.
        """
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--engine ray needs Ray: pip install 'shardsieve[ray]'")
        if address is not None and address.startswith("ray://"):
            raise ConfigError(
                f"--address {address}: Ray Client cannot be used. Give the command on a machine of "
                "the cluster with --address auto, or with `ray job submit`"
            )
        self._progress, self._address = progress, address
        self._workers, self._cpus = workers, cpus
        self._started, self._joined = False, False
        self._pool: Pool | None = None
        self._leaving: Thread | None = None

    def close(self) -> None:
        """Leaves the cluster if it was joined here; one of our own ends."""
        if self._leaving is not None:
            self._leaving.join()
            self._leaving = None
        self._let_go()

    def leave(self) -> None:
        """Lets go of the cluster beside what follows: that takes a second, workers hold cores."""
        if self._leaving is None:
            self._leaving = Thread(target=self._let_go, name="leave-ray")
            self._leaving.start()

    def _let_go(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._started:
            import ray

            ray.shutdown()
            self._started = False

    def start(self, device: str, n_shards: int) -> None:
        """Connects, or starts a cluster of our own, whose workers load torch meanwhile."""
        self._connect()
        cpus = self._cpus_of(gpu=False)
        # Those that index are those that embed, unless these have GPUs or more cores.
        if self._pool is None and cpus == 1 and not self._on_gpu(device):
            self._pool = Pool(cpus, 0, self._workers, self._progress)
            self._pool.warm_up(n_shards, _LOADED_BY_EMBED)

    def device(self, name: str) -> torch.device:
        """A GPU if the cluster has one."""
        import torch

        if name == "auto":
            name = "cuda" if self._on_gpu(name) else "cpu"
        # Ray shows a worker no GPU but its own.
        return torch.device(name.partition(":")[0])

    def device_here(self, name: str) -> str:
        """A GPU was asked for on the cluster: the head takes one if it has one."""
        return "auto" if name.startswith("cuda") else name

    def devices(self, one: torch.device) -> list[torch.device]:
        """One: every worker has its own."""
        return [one]

    def precision(self, precision: Precision, device: torch.device) -> Precision:
        """As a worker can; all of them compute in the same."""
        from shardsieve.models.precision import resolve_precision

        if device.type == "cpu":
            return resolve_precision(precision, device)
        self._connect()
        import ray

        asked = ray.remote(num_gpus=1, num_cpus=1)(resolve_precision)
        try:
            found: Precision = ray.get(
                asked.options(name="shardsieve.precision").remote(precision, device)
            )
        except ray.exceptions.RayTaskError as error:
            raise DeviceUnavailable(f"{device} on the cluster: {error.cause}") from error
        return found

    def decoders(self, asked: int | None, device: torch.device) -> int:
        """As many as a worker has cores."""
        if asked is not None:
            return asked
        # One as well: it goes on while the results of a shard wait for the disk.
        return min(8, self._cpus_of(device.type == "cuda"))

    def map(
        self, job: Job[P, R], pieces: Sequence[P], out: Path, advance: Advance, *, threads: int = 0
    ) -> Iterator[tuple[P, R]]:
        """By actors, which load once what the job needs; a lost one costs its unfinished pieces."""
        # Of a call that was killed.
        shutil.rmtree(out / MEETING, ignore_errors=True)
        if not pieces:
            return
        place = Place(out.resolve(), uuid.uuid4().hex)
        place.meeting.mkdir(parents=True)
        pool, finished = self._pool_for(job), False
        try:
            for number, result in self._collect(job, pieces, place, pool):
                advance(job.amount(result))
                yield pieces[number], result
            self._say_rates(job, pool)
            finished = True
        finally:
            # Actors of a cut-off job are still at it, and idle ones may hold memory of a GPU.
            if not finished or pool.gpus:
                pool.close()
            shutil.rmtree(out / MEETING, ignore_errors=True)

    def processes(self, stage: str, asked: int, device: torch.device, most: int) -> int:
        """As many as asked for; else as many as there are workers."""
        if asked > 1:
            return asked
        gpu = device.type == "cuda"
        has = self._resources()
        room = has.get("GPU", 1) if gpu else has.get("CPU", 1) // self._cpus_of(gpu)
        return max(1, min(self._workers or int(room), most))

    def decoders_together(self, asked: int | None, device: torch.device, processes: int) -> int:
        """As many beside each as `embed` has."""
        return processes * self.decoders(asked, device)

    def together(
        self,
        stage: str,
        training: Training[R],
        processes: int,
        device: torch.device,
        out: Path,
        progress: Progress,
    ) -> R:
        """By Ray Train; a lost worker costs what was trained since the last state."""
        from shardsieve.engines.ray_train import train_on_ray

        self._connect()
        # The actors of other stages hold what the workers of this one ask for.
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        gpu = device.type == "cuda"
        resources = {"CPU": float(self._cpus_of(gpu))} | ({"GPU": 1.0} if gpu else {})
        shutil.rmtree(out / MEETING, ignore_errors=True)
        place = Place(out.resolve(), uuid.uuid4().hex)
        place.meeting.mkdir(parents=True)
        try:
            result: R = train_on_ray(
                stage, training, place, processes, resources, progress, shown=self._joined
            )
            return result
        finally:
            shutil.rmtree(out / MEETING, ignore_errors=True)

    def _collect(
        self, job: Job[P, R], pieces: Sequence[P], place: Place, pool: Pool
    ) -> Iterator[tuple[int, R]]:
        import ray

        losses: dict[int, int] = {}
        waiting = list(range(len(pieces) - 1, -1, -1))
        left = len(pieces)
        while left:
            pool.grow(left)
            while waiting and (worker := pool.idle()) is not None:
                # Many at once, so that the next is decoded meanwhile; few towards the end.
                size = max(1, min(8, len(waiting) // (2 * len(pool))))
                numbers = [waiting.pop() for _ in range(min(size, len(waiting)))]
                chosen = job.detach([pieces[number] for number in numbers])
                worker.give(numbers, chosen, place)
            for number, done in pool.finished():
                if not isinstance(done, Lost):
                    try:
                        for name, parts in done.files:
                            save(name, (ray.get(part) for part in parts), place.out)
                    except ray.exceptions.ObjectLostError:
                        # Its worker ended before all of it had come.
                        done = Lost("its files were lost on the way")
                if isinstance(done, Lost):
                    waiting.append(number)
                    losses[number] = losses.get(number, 0) + done.counts
                    if losses[number] >= _MOST_LOSSES:
                        raise DataError(
                            f"{job.stage}: the worker that had piece {number + 1} of {len(pieces)} "
                            f"was lost {_MOST_LOSSES} times, most likely for want of memory "
                            f"({done.why}). Give workers more memory, or set fewer of them; what "
                            "is finished stays"
                        )
                    continue
                left -= 1
                pool.note(number, job.amount(done.result), done.seconds)
                yield number, done.result

    def _pool_for(self, job: Job[Any, Any]) -> Pool:
        self._connect()
        gpus = int((job.device or "").startswith("cuda"))
        cpus = self._cpus_of(gpu=bool(gpus)) if job.device else 1
        if self._pool is None or (self._pool.cpus, self._pool.gpus) != (cpus, gpus):
            if self._pool is not None:
                self._pool.close()
            self._pool = Pool(cpus, gpus, self._workers, self._progress)
        self._pool.take(job)
        return self._pool

    def _cpus_of(self, gpu: bool) -> int:
        if self._cpus is not None:
            return self._cpus
        if gpu:
            resources = self._resources()
            return max(1, min(8, int(resources.get("CPU", 1) // max(resources.get("GPU", 1), 1))))
        return 1

    def _on_gpu(self, device: str) -> bool:
        return bool(self._resources().get("GPU")) if device == "auto" else device != "cpu"

    def _resources(self) -> dict[str, float]:
        self._connect()
        import ray

        resources: dict[str, float] = ray.cluster_resources()
        return resources

    def _connect(self) -> None:
        if self._leaving is not None:
            self.close()
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        start = time.monotonic()
        try:
            # The console is ours: what workers say is in Ray's logs, what they raise comes here.
            ray.init(
                address,
                namespace="shardsieve",
                log_to_driver=False,
                logging_level="ERROR",
                **(own if address == "local" else {}),
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"--address {address}: no Ray cluster can be reached there ({error}). "
                "Start one with `ray start --head`, or leave --address out"
            ) from error
        self._started, self._joined = True, address != "local"
        cores = ray.cluster_resources().get("CPU", 0)
        self._progress.note(
            f"ray: {len(ray.nodes())} nodes, {cores:,.0f} cores, "
            f"{ray.cluster_resources().get('GPU', 0):,.0f} GPUs "
            f"({time.monotonic() - start:.1f} s to connect)"
        )

    def _say_rates(self, job: Job[Any, Any], pool: Pool) -> None:
        rates = pool.rates()
        for name, (pieces, amount, seconds) in list(rates.items())[:_LISTED_WORKERS]:
            rate = amount / seconds if seconds else 0.0
            self._progress.note(
                f"{job.stage}: worker {name}: {pieces:,} shards, {rate:,.0f} {job.unit}/s"
            )
        if len(rates) > _LISTED_WORKERS:
            each = sorted(amount / max(s, 1e-9) for _, amount, s in rates.values())
            self._progress.note(
                f"{job.stage}: and {len(rates) - _LISTED_WORKERS:,} more workers; all of them: "
                f"{each[0]:,.0f} to {each[-1]:,.0f} {job.unit}/s, "
                f"median {each[len(each) // 2]:,.0f}"
            )
