"""The options that say where a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shardsieve.engines.choice import Engine

EngineOption = Annotated[
    str, typer.Option("--engine", help="local, or ray: the same work on a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With ray: auto or HOST:PORT [default: RAY_ADDRESS, else a cluster of this machine]."
    ),
]
RayWorkers = Annotated[
    int | None, typer.Option(help="With ray: most workers [default: the cluster's GPUs or cores].")
]
RayCpus = Annotated[
    int | None, typer.Option(help="With ray: cores of one worker [default: what fits its device].")
]


def engine_of(name: str, address: str | None, workers: int | None, cpus: int | None) -> Engine:
    """Makes the engine of a command's options.

    Raises:
        ConfigError: They do not fit together.
    """
    from shardsieve.engines.choice import Engine

    return Engine(name, address, workers, cpus)  # type: ignore[arg-type]
