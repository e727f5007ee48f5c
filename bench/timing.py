"""Seconds of wall time and of CPU, and peak memory, of a call."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Cost(NamedTuple):
    """What a call cost.

    Attributes:
        wall_s: Seconds on the clock.
        cpu_s: Seconds of all cores, of this process and of children that have ended.
    """

    wall_s: float
    cpu_s: float


def cost(call: Callable[[], object]) -> Cost:
    """Times one call."""
    cpu, wall = _cpu_s(), time.perf_counter()
    call()
    return Cost(time.perf_counter() - wall, _cpu_s() - cpu)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    warmups: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Times several calls in turn, so that a slow minute of the machine hits all of them.

    Args:
        calls: What to time, by name.
        repeats: Timed rounds.
        warmups: Rounds before them: compilation, caches, thread pools.
        before: Called before each of them and not timed: `os.sync`, so that none pays for what
            another left to be written.

    Returns:
        Per name: `wall_s` and `cpu_s` as [least, median, most], and `repeats`.
    """
    for _ in range(warmups):
        for call in calls.values():
            call()
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if before is not None:
                before()
            costs[name].append(cost(call))
    return spreads(costs)


def spreads(costs: Mapping[str, Sequence[Cost]]) -> dict[str, dict[str, Any]]:
    """Returns per name `wall_s` and `cpu_s` as [least, median, most], and `repeats`."""
    return {
        name: {
            "wall_s": _spread([one.wall_s for one in several]),
            "cpu_s": _spread([one.cpu_s for one in several]),
            "repeats": len(several),
        }
        for name, several in costs.items()
    }


def in_new_process(
    call: Callable[..., T], *arguments: Any, environment: dict[str, str] | None = None
) -> tuple[T, Cost, int]:
    """Calls a module's function in a fresh interpreter.

    Args:
        call: A function that can be imported by name.
        arguments: What it gets.
        environment: Variables to set before anything is imported there, for example thread counts.

    Returns:
        What it returned, what it cost, and the peak resident memory of that process in bytes,
        counted from the start of the process: imports are in it.
    """
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in environment or {}}
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_call_and_watch, call, arguments).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_bare_process(
    call: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None
) -> Any:
    """Calls a module's function in an interpreter that imports that module and nothing else.

    Other than with `in_new_process` the command `python -m bench`, and torch with it, is not
    loaded there, so that the memory of the process is that of the call.

    Args:
        call: A function that can be imported by name.
        arguments: JSON values.
        environment: Variables to set there.

    Returns:
        What it returned, through JSON.
    """
    code = (
        "import json, sys; from importlib import import_module; "
        "module, name, arguments = json.loads(sys.argv[1]); "
        "print(json.dumps(getattr(import_module(module), name)(*arguments)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([call.__module__, call.__name__, arguments])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    return json.loads(done.stdout)


def _call_and_watch(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Cost, int]:
    outcome: list[Any] = []
    spent = cost(lambda: outcome.append(call(*arguments)))
    return outcome[0], spent, peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Returns the most resident memory that this process ever had.

    Not getrusage's figure, which Linux hands on from the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_s() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _spread(values: list[float]) -> list[float]:
    return [round(value, 6) for value in (min(values), statistics.median(values), max(values))]
