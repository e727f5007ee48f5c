"""Processes that train one set of heads, each with a part of the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Together(Protocol):
    """The processes, seen from one of them; `shardsieve.engines.processes.Group` is one."""

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def world(self) -> int:
        """How many there are."""

    def sum_(self, numbers: torch.Tensor) -> torch.Tensor:
        """Adds up a tensor over all processes, in place."""

    def from_leader_(self, numbers: torch.Tensor) -> torch.Tensor:
        """Gives every process the first one's tensor, in place."""


@dataclass(frozen=True, slots=True)
class Alone:
    """One process that has all samples."""

    rank: int = 0
    world: int = 1

    def sum_(self, numbers: torch.Tensor) -> torch.Tensor:
        """Nothing is to be added."""
        return numbers

    def from_leader_(self, numbers: torch.Tensor) -> torch.Tensor:
        """This is the leader."""
        return numbers


ALONE = Alone()
