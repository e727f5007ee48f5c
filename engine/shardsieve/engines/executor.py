"""The work of a stage, shard by shard, and what does it: a stage does not know where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shardsieve.config import Precision
from shardsieve.progress import Advance, Progress

if TYPE_CHECKING:
    import torch

    from shardsieve.engines.processes import Group

# In the folder that a job writes to: where workers elsewhere make their files.
MEETING = "from-workers"

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


class Training(Protocol[R_co]):
    """What each of the processes calls that train together."""

    def __call__(self, group: Group, out: Path, progress: Progress) -> R_co:
        """Trains.

        Args:
            group: The processes, seen from one of them.
            out: Folder of the results. It may hold what an earlier start left in `*.part`.
            progress: Where to report.
        """
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

    def start(self, device: str, n_shards: int) -> None:
        """Begins with what takes a while before networks can run.

        Args:
            device: The setting of where they will.
            n_shards: How many there are; more workers are of no use.

        Raises:
            ConfigError: The cluster cannot be reached.
        """
        ...

    def leave(self) -> None:
        """Is told that nothing more will be asked; what is held for it can go meanwhile."""
        ...

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

    def processes(self, stage: str, asked: int, device: torch.device, most: int) -> int:
        """Returns how many processes share the steps of a training.

        Args:
            stage: Whose training it is.
            asked: The setting; 1 lets the engine choose.
            device: Where each runs its network.
            most: More are of no use.

        Raises:
            ConfigError: One device was named, and several are asked for.
            DeviceUnavailable: There are fewer GPUs.
        """
        ...

    def decoders_together(self, asked: int | None, device: torch.device, processes: int) -> int:
        """Returns how many processes decode images for a training, in all.

        Args:
            asked: The setting `workers`.
            device: Where each process runs its network.
            processes: How many train.
        """
        ...

    def together(
        self,
        stage: str,
        training: Training[R],
        processes: int,
        device: torch.device,
        out: Path,
        progress: Progress,
    ) -> R:
        """Trains in several processes; returns what the one that leads returned.

        Args:
            stage: Whose training it is.
            training: What each of them calls; can be pickled.
            processes: How many.
            device: Where each runs its network.
            out: Folder of the results.
            progress: Where to report.

        Raises:
            ShardsieveError: What the training raises.
        """
        ...
