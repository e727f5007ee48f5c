"""How far a fine-tuning has come, and what it has seen on the way.

Shapes: N samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.engines.processes import Group
from shardsieve.tuning.steps import Outcome

_COUNTERS = (
    "epoch",
    "step",
    "updates",
    "seen",
    "seconds",
    "waiting_seconds",
    "best",
    "saved_epoch",
    "images",
    "metrics",
    "notes",
)


class Position:
    """Where the next step is, and the running figures up to it.

    Attributes:
        kept_N: (N,) the clean samples of this epoch.
        epoch: Of the next step, from 0.
        step: Of the epoch, from 0.
        updates: Steps done in all epochs.
        seen: Samples of the epoch so far that were trained on, in all processes.
        seconds: Spent on the steps of the epoch so far.
        waiting_seconds: Of these, spent waiting for decoded images.
        best: Score of the epoch that is saved.
        saved_epoch: Its number, from 1.
        images: That went through the network in training and reselection.
        metrics: One row per epoch.
        notes: Sentences for the user.
    """

    def __init__(self, kept_N: npt.NDArray[np.bool_]) -> None:
        self.kept_N = kept_N
        self.epoch = self.step = self.updates = self.seen = self.saved_epoch = self.images = 0
        self.seconds = self.waiting_seconds = 0.0
        self.best = -1.0
        self.metrics: list[dict[str, Any]] = []
        self.notes: list[str] = []
        # Loss summed over samples, and samples: agreed on by all processes, and not yet.
        self._agreed: torch.Tensor | None = None
        self._own: torch.Tensor | None = None

    def count(self, outcome: Outcome) -> None:
        """Adds the losses of a step of this process; a GPU is not waited for."""
        count = torch.full_like(outcome.loss_sum, len(outcome.rows))
        own = torch.stack([outcome.loss_sum, count])
        self._own = own if self._own is None else self._own + own
        self.waiting_seconds += outcome.waiting_seconds

    def merge(self, group: Group, seen: int) -> None:
        """Adds up over the processes what was counted since the last time."""
        own = torch.zeros(2, device=group.device) if self._own is None else self._own
        summed = group.sum_(own)
        self._agreed = summed if self._agreed is None else self._agreed.to(summed.device) + summed
        self._own = None
        self.seen += seen

    @property
    def loss(self) -> float:
        """Mean loss of the samples of the epoch so far, as of the last `merge`."""
        total, count = self._agreed.tolist() if self._agreed is not None else (0.0, 0.0)
        return float(total / count) if count else float("nan")

    def next_epoch(self, drawn: int) -> None:
        """Goes to the first step of the next epoch."""
        self.images += drawn
        self.epoch, self.step, self.seen = self.epoch + 1, 0, 0
        self.seconds = self.waiting_seconds = 0.0
        self._agreed = self._own = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs; to be called after `merge`."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "agreed": self._agreed,
            "kept": torch.from_numpy(np.packbits(self.kept_N)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self._agreed = state["agreed"]
        packed = state["kept"].cpu().numpy()
        self.kept_N = np.unpackbits(packed, count=len(self.kept_N)).astype(bool)
