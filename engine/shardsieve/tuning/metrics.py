"""What happened in each epoch: JSON lines, and TensorBoard's events for who wants them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from shardsieve.data.table import write_text
from shardsieve.errors import ConfigError

FILE = "metrics.jsonl"
_EVERY_STEPS = 20


def refuse_without_tensorboard() -> None:
    """Makes sure that events can be written.

    Raises:
        ConfigError: The package is not there.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tune.tensorboard needs the package tensorboard, which is not installed: "
            "pip install 'shardsieve[tensorboard]'"
        )


class MetricsLog:
    """Where the figures of a fine-tuning go."""

    def __init__(self, out: Path, *, tensorboard: bool, step: int) -> None:
        """Opens the log.

        Args:
            out: Folder for `metrics.jsonl` and `tensorboard`.
            tensorboard: Whether to write events.
            step: Steps done before; events of later ones, from before a kill, do not count.
        """
        self._out = out
        self._events = None
        if tensorboard:
            refuse_without_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def step(self, number: int, *, loss: float, lr: float) -> None:
        """Notes loss and learning rate of a step."""
        if self._events is not None:
            self._events.add_scalar("step/loss", loss, number)
            self._events.add_scalar("step/lr", lr, number)

    def wants(self, number: int) -> bool:
        """Whether `step` is to be called: reading a loss makes a GPU wait."""
        return self._events is not None and number % _EVERY_STEPS == 0

    def epochs(self, rows: list[dict[str, Any]], step: int) -> None:
        """Writes all epochs so far, and the last one as events."""
        write_text(self._out / FILE, "".join(json.dumps(row) + "\n" for row in rows))
        if self._events is not None:
            for name, value in rows[-1].items():
                self._events.add_scalar(f"epoch/{name}", value, step)
            self._events.flush()

    def close(self) -> None:
        """Finishes the events."""
        if self._events is not None:
            self._events.close()
