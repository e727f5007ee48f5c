"""Which engine a call runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from shardsieve.engines.executor import Executor
from shardsieve.engines.local import Local
from shardsieve.errors import ConfigError
from shardsieve.progress import Progress

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with its options, which change no result.

    Attributes:
        name: `local` or `ray`.
        address: `ray`: `auto` or `host:port` of a cluster; None for the one in RAY_ADDRESS, or
            else a cluster of this machine alone that ends with the call.
        workers: `ray`: most workers; None for as many as the cluster has GPUs, or cores.
        cpus: `ray`: cores of one worker; None for what fits its device.
    """

    name: EngineName = "local"
    address: str | None = None
    workers: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot work.

        Raises:
            ConfigError: The name is not known, or options are given that the engine does not have.
        """
        if self.name not in get_args(EngineName):
            raise ConfigError(f"engine {self.name}: there are {', '.join(get_args(EngineName))}")
        for option in ("address", "workers", "cpus"):
            value = getattr(self, option)
            if self.name == "local" and value is not None:
                raise ConfigError(f"{option} = {value} is for the engine ray; add --engine ray")
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{option} = {value}: give at least 1")


@contextmanager
def opened(engine: Engine | EngineName, progress: Progress) -> Iterator[Executor]:
    """Gives the executor of an engine, which lets go of its cluster at the end.

    Args:
        engine: Its name, or with options.
        progress: Where it reports to.

    Raises:
        ConfigError: The engine cannot be had.
    """
    chosen = engine if isinstance(engine, Engine) else Engine(engine)
    if chosen.name == "local":
        yield Local()
        return
    from shardsieve.engines.ray_engine import RayExecutor

    executor = RayExecutor(
        progress, address=chosen.address, workers=chosen.workers, cpus=chosen.cpus
    )
    try:
        yield executor
    finally:
        executor.close()
