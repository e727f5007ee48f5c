"""Processes that train together, as torch joins them; those of one machine by torch elastic."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed, nn

from shardsieve import errors
from shardsieve.errors import ConfigError, DeviceUnavailable, ShardsieveError

T = TypeVar("T")


def _nothing() -> None:
    pass


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that work together, seen from one of them.

    Attributes:
        device: Where this one computes.
        rank: Its number.
        world: How many there are.
        saved: The one that leads calls it when its folder holds all that a fresh start of the
            group needs.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    saved: Callable[[], None] = _nothing

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0

    def sum_(self, numbers: torch.Tensor) -> torch.Tensor:
        """Adds up a tensor over all processes, in place."""
        if self.world > 1:
            # NCCL moves what is on a GPU.
            there = numbers.to(self.device)
            distributed.all_reduce(there)
            if there is not numbers:
                numbers.copy_(there)
        return numbers

    def from_leader_(self, numbers: torch.Tensor) -> torch.Tensor:
        """Gives every process the first one's tensor, in place."""
        if self.world > 1:
            there = numbers.to(self.device)
            distributed.broadcast(there, 0)
            if there is not numbers:
                numbers.copy_(there)
        return numbers

    def wrap(self, network: nn.Module) -> nn.Module:
        """Returns the network such that its gradients are averaged over all processes."""
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        # Statistics of batch norms are frozen, or the same everywhere (SyncBatchNorm).
        return nn.parallel.DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False
        )


def check_processes(processes: int, device: torch.device, stage: str) -> None:
    """Refuses numbers of processes that this machine cannot have.

    Args:
        processes: How many.
        device: What each needs one of.
        stage: Whose setting it is.

    Raises:
        ConfigError: One device was named.
        DeviceUnavailable: There are fewer GPUs.
    """
    if processes == 1:
        return
    if device.type == "cuda" and device.index is not None:
        raise ConfigError(
            f"{stage}.processes = {processes} with device = {device}: that is one GPU; use cuda"
        )
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise DeviceUnavailable(
            f"{stage}.processes = {processes}: there are {torch.cuda.device_count()} GPUs"
        )


def check_batch_norm(processes: int, device: torch.device, batch_norm: str) -> None:
    """Refuses batch norms that would see a part of each step.

    Raises:
        ConfigError: That is so.
    """
    if processes > 1 and device.type == "cpu" and batch_norm == "trained":
        raise ConfigError(
            f"tune.batch_norm = trained with tune.processes = {processes} needs GPUs: "
            "torch has no batch norm over several processes on a CPU"
        )


def run_in(processes: int, kind: str, out: Path, call: Callable[[Group], T]) -> T:
    """Calls a function in several processes that form a group.

    The calling script needs an `if __name__ == "__main__"`, as with every start of processes.

    Args:
        processes: How many.
        kind: `cuda` or `cpu`.
        out: Folder for what a process that fails has to say.
        call: A function that can be sent to another process.

    Returns:
        What the first process returned.

    Raises:
        ShardsieveError: The one that a process raised.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    # Its report of a failure is several pages around the message, which is shown anyway.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for file in out.glob("failed-*.part"):
        file.unlink()
    try:
        with _handlers_restored():
            returned = elastic_launch(settings, _work)(kind, out, call)
    except ChildFailedError as error:
        raise _told(out, error) from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    first: T = returned[0]
    return first


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """Takes back torch elastic's handlers of signals, which it leaves behind."""
    # Python lets the main thread alone set handlers, and so does elastic.
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if mine else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(kind: str, out: Path, call: Callable[[Group], T]) -> T:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        return call(Group(device, rank, world))
    except ShardsieveError as error:
        told = {"error": type(error).__name__, "message": str(error)}
        (out / f"failed-{rank}.part").write_text(json.dumps(told), encoding="utf-8")
        raise
    finally:
        distributed.destroy_process_group()


def _told(out: Path, failure: Exception) -> ShardsieveError:
    for file in sorted(out.glob("failed-*.part")):
        told = json.loads(file.read_text(encoding="utf-8"))
        kind: type[ShardsieveError] = getattr(errors, told["error"], ShardsieveError)
        return kind(told["message"])
    return ShardsieveError(f"a process of the training died: {failure}")
