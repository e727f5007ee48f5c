"""Which samples an epoch trains on, in which order, in which step and in which process.

Shapes: N samples, R rows of an epoch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shardsieve.selection.turn import balanced_draw
from shardsieve.tuning.job import Job
from shardsieve.tuning.randomness import DRAW

Rows = npt.NDArray[np.int64]


class Epoch(NamedTuple):
    """The samples of one epoch.

    Attributes:
        steps: Rows of each step, every row once in all of them.
        per_class: Samples of the class that has the fewest.
        absent: Classes that have no clean sample.
    """

    steps: list[Rows]
    per_class: int
    absent: list[int]

    @property
    def drawn(self) -> int:
        """R."""
        return sum(map(len, self.steps))


def draw_epoch(job: Job, kept_N: npt.NDArray[np.bool_], epoch: int) -> Epoch:
    """Draws the samples of an epoch and puts them into steps; a function of seed and epoch."""
    kept = np.flatnonzero(kept_N)
    label_R = job.samples.label_N[kept]
    rng = np.random.default_rng([job.seed, DRAW, epoch])
    if job.config.balance == "all" and job.config.max_samples is None:
        counts_K = np.bincount(label_R, minlength=len(job.classes))
        drawn, per_class = rng.permutation(len(kept)), int(counts_K[counts_K > 0].min())
        absent = np.flatnonzero(counts_K == 0).tolist()
    else:
        drawn, per_class, absent = balanced_draw(
            label_R, len(job.classes), at_most=job.config.max_samples, rng=rng
        )
    rows = kept[drawn]
    # Nearly equal steps: a last one of one image would give batch norm nothing to average over.
    n_steps = math.ceil(len(rows) / job.config.batch_size)
    return Epoch(np.array_split(rows, n_steps), per_class, absent)


def share_of(rows: Rows, rank: int, world: int, parts: int) -> list[Rows]:
    """Returns the rows of a step that a process computes, in the parts it computes them in."""
    return np.array_split(rows[rank::world], parts)
