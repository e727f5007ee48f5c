"""A Ray cluster on this machine, for the tests of the engine."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    # Where tests share a machine, Ray's workers would give way to everything else on it.
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "180",
    # What the workers call may be made in the tests.
    "PYTHONPATH": str(Path(__file__).parent),
}


# For Ray Train.
TRAIN = {
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # One process less that imports all of it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@contextlib.contextmanager
def cluster_of(workers: int, **environment: str) -> Iterator[None]:
    """Room for so many workers, whatever this machine has."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        before = os.environ.get("PYTHONPATH")
        for name, value in (QUIET | environment).items():
            patch.setenv(name, value)
        if before:
            patch.setenv("PYTHONPATH", before, prepend=os.pathsep)
        for _ in range(3):
            # Ray gives its agents 15 seconds to start, which a busy machine may not keep.
            with contextlib.suppress(Exception):
                ray.init(
                    "local",
                    num_cpus=workers,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=100_000_000,
                )
                break
        assert ray.is_initialized(), "Ray did not start"
        yield
        with warnings.catch_warnings():
            # Ray leaves its processes to the garbage collector, which is to come here.
            warnings.simplefilter("ignore", ResourceWarning)
            ray.shutdown()
            gc.collect()
