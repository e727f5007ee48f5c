"""The state of an unfinished fine-tuning on disk: whole or absent, gone when it is finished."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from shardsieve.data.disk import sync_folder
from shardsieve.data.table import replace_file
from shardsieve.engines.processes import Group
from shardsieve.errors import DataError

# A finished stage loses what ends in .part, at the very moment that it counts as finished.
FILE = "resume.part"
_AGREE_EVERY = 10


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Writes the state in place of the one before."""
    temporary = out / f"new-{FILE}"
    torch.save(state, temporary)
    replace_file(temporary, out / FILE)
    sync_folder(out)


def read_state(out: Path) -> dict[str, Any] | None:
    """Returns the state that an interrupted call left, on the CPU; None where there is none.

    Raises:
        DataError: It is there and cannot be read.
    """
    file = out / FILE
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, LookupError) as error:
        raise DataError(f"{file}: damaged ({error}); delete it to tune from the start") from error
    return state


class Due:
    """Says after which steps the state is to be written; all processes agree."""

    def __init__(self, minutes: float, steps: int | None, group: Group) -> None:
        self._seconds, self._steps, self._group = 60 * minutes, steps, group
        self._last = time.monotonic()

    def __call__(self, step: int) -> bool:
        """Whether it is time after `step` steps of the epoch."""
        if self._steps is not None and step % self._steps == 0:
            self._last = time.monotonic()
            return True
        late = time.monotonic() - self._last > self._seconds
        if self._group.world > 1:
            # Clocks differ, and what is written is added up over the processes.
            if step % _AGREE_EVERY:
                return False
            flag = torch.tensor(float(late), device=self._group.device)
            late = bool(self._group.from_leader_(flag))
        if late:
            self._last = time.monotonic()
        return late
