"""A training on a Ray cluster: Ray Train starts the workers, torch DDP joins them.

A host beside the command runs Ray Train's `TorchTrainer`, passes on what the workers report, and is
their way to the run directory where they do not see it.
"""

from __future__ import annotations

import os
import pickle
import queue
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shardsieve.data.disk import sync_folder
from shardsieve.data.table import replace_file
from shardsieve.engines.executor import Training
from shardsieve.engines.ray_train_worker import work
from shardsieve.engines.ray_worker import PIECE_BYTES, Place
from shardsieve.errors import DataError
from shardsieve.progress import Advance, Progress

# Workers lost before the training is given up: as often as a shard of another stage.
_MOST_RESTARTS = 3
# How long a call for news waits for some, and after which time a wait is told, seconds.
_HEAR_S, _PATIENCE_S = 1.0, 30.0
# A worker stays in the folder that the command gave it: paths in the environment may be relative.
_SETTINGS = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}
_IN_DASHBOARD = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}


class TrainHost:
    """An actor on the machine of the command; when it ends, the training ends."""

    def __init__(self, stage: str, out: Path) -> None:
        """Takes the stage whose training it is, and the folder of the results."""
        self._stage, self._out = stage, out
        self._events: queue.Queue[tuple[Any, ...]] = queue.Queue()

    def __repr__(self) -> str:
        """The name under which Ray's dashboard and logs show it."""
        return named(self._stage)

    def fit(
        self,
        host: Any,
        packed: bytes,
        place: Place,
        workers: int,
        resources: dict[str, float],
        shown: bool,
    ) -> None:
        """Trains until it is done, with fresh workers where one is lost.

        Args:
            host: The handle of this actor.
            packed: A pickled `Training`.
            place: The folder of the results.
            workers: How many.
            resources: What each asks the cluster for.
            shown: Whether the cluster has a dashboard.

        Raises:
            DataError: Workers were lost too often.
        """
        for name, value in (_SETTINGS | (_IN_DASHBOARD if shown else {})).items():
            os.environ.setdefault(name, value)
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer

        def member() -> None:
            work(packed, place, host)

        # Ray Train wants a folder of its own; our state is in the run directory.
        with tempfile.TemporaryDirectory(prefix="shardsieve-") as folder:
            trainer = TorchTrainer(
                member,
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu="GPU" in resources,
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name=named(self._stage),
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=_MOST_RESTARTS),
                ),
            )
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise DataError(
                    f"{self._stage}: workers were lost or failed {_MOST_RESTARTS + 1} times "
                    f"({_why(error)}). Ray's logs say more; the same command takes it up again"
                ) from error

    def tell(self, *event: Any) -> None:
        """Takes what a worker has to say."""
        self._events.put(event)

    def heard(self) -> list[tuple[Any, ...]]:
        """Returns what the workers said since the last time, after a while in any case."""
        events = []
        try:
            events.append(self._events.get(timeout=_HEAR_S))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def unfinished(self) -> list[str]:
        """Returns the names of the files that a fresh start needs."""
        return [path.name for path in sorted(self._out.glob("*.part")) if path.is_file()]

    def read(self, name: str, offset: int) -> bytes:
        """Returns a piece of a file; nothing at its end."""
        with (self._out / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def write(self, name: str, offset: int, piece: bytes) -> None:
        """Takes a piece of a file that is not whole yet."""
        path = _unfinished(self._out / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)

    def put_in_place(self, name: str) -> None:
        """Lets the file that has come take the place of the one before."""
        replace_file(_unfinished(self._out / name), self._out / name)
        sync_folder(self._out)


def named(stage: str) -> str:
    """Returns the name under which Ray's dashboard shows a training."""
    return f"shardsieve.{stage}"


def train_on_ray(
    stage: str,
    training: Training[Any],
    place: Place,
    workers: int,
    resources: dict[str, float],
    progress: Progress,
    *,
    shown: bool,
) -> Any:
    """Runs a training on the cluster that is connected.

    Args:
        stage: Whose training it is.
        training: What each worker calls; can be pickled.
        place: The folder of the results.
        workers: How many.
        resources: What each asks the cluster for.
        progress: Where to report.
        shown: Whether the cluster has a dashboard.

    Returns:
        What the training returned in the worker that leads.

    Raises:
        ShardsieveError: What the training raised.
        DataError: Workers were lost too often.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    host = (
        ray.remote(TrainHost)
        .options(num_cpus=0, max_concurrency=workers + 8, scheduling_strategy=here)
        .remote(stage, place.out)
    )
    fitting = host.fit.options(name=named(stage)).remote(
        host, pickle.dumps(training), place, workers, resources, shown
    )
    asked = ", ".join(f"{amount:g} {what}" for what, amount in resources.items())
    listener = _Listener(stage, progress, f"{workers} workers with {asked} each")
    try:
        while not listener.follow(host, fitting):
            pass
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
    except ray.exceptions.RayActorError as error:
        raise DataError(
            f"{stage}: the process of Ray Train beside the command was lost, most likely for want "
            "of memory; the same command takes it up again"
        ) from error
    finally:
        listener.close()
        # All that it started ends with it, but what it had reserved.
        ray.kill(host)
        if listener.reserved is not None:
            ray.util.remove_placement_group(listener.reserved)
    return listener.result


class _Listener:
    """What the workers report, in the one place where this call reports."""

    def __init__(self, stage: str, progress: Progress, asked: str) -> None:
        self._stage, self._progress, self._asked = stage, progress, asked
        self._bar = ExitStack()
        self._count: Advance | None = None
        self._starts, self._began, self._told = 0, time.monotonic(), False
        self._heard: Any = None
        self.result: Any = None
        self.reserved: Any = None

    def follow(self, host: Any, fitting: Any) -> bool:
        """Reports what comes next; returns whether that was all."""
        import ray

        if self._heard is None:
            self._heard = host.heard.remote()
        ready, _ = ray.wait([self._heard, fitting], fetch_local=False)
        done = fitting in ready
        for event in ray.get(self._heard):
            self._take(*event)
        self._heard = None
        waited = time.monotonic() - self._began
        if not self._starts and not self._told and waited > _PATIENCE_S:
            self._told = True
            self._progress.note(
                f"{self._stage}: waiting for {self._asked}; the cluster has none free, or they are "
                "still loading"
            )
        if done:
            ray.get(fitting)
            for event in ray.get(host.heard.remote()):
                self._take(*event)
        return done

    def close(self) -> None:
        """Ends the bar."""
        self._count = None
        self._bar.close()

    def _take(self, what: str, *said: Any) -> None:
        if what == "begins":
            self.close()
            self._starts += 1
            self.reserved = said[0]
            if self._starts > 1:
                self._progress.note(f"{self._stage}: a worker was lost; fresh ones take over")
        elif what == "track":
            self.close()
            self._count = self._bar.enter_context(self._progress.track(*said))
        elif what == "advance" and self._count is not None:
            self._count(said[0])
        elif what == "tracked":
            self.close()
        elif what == "note":
            self._progress.note(said[0])
        elif what == "failed":
            raise said[0]
        elif what == "result":
            self.result = said[0]


def _unfinished(path: Path) -> Path:
    return path.with_name(f"coming-{path.name}.new")


def _why(error: Exception) -> str:
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    told = [f"worker {rank}: {_last_line(failure)}" for rank, failure in failures.items()]
    return "; ".join(told[:4]) or _last_line(error)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
