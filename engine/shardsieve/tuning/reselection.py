"""Which samples are clean, judged by losses of the network as it is.

Shapes: N samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.engines.processes import Group
from shardsieve.selection.turn import mixture_losses, select_turn
from shardsieve.tuning.job import Job


def reselect(job: Job, losses_N: npt.NDArray[np.float32], group: Group) -> npt.NDArray[np.bool_]:
    """Fits the mixtures anew and returns (N,) the samples above tau; the same in all processes.

    Samples that people decided on stay as they were.
    """
    kept_N = np.zeros(len(losses_N), bool)
    if group.leads:
        rows = np.flatnonzero(np.isfinite(losses_N) & job.samples.usable_N)
        selection = select_turn(
            mixture_losses(losses_N[rows], job.select.loss, job.q),
            job.samples.label_N[rows],
            len(job.classes),
            preset=job.select.gmm,
            min_samples=job.select.min_samples,
            reg_covar=job.select.reg_covar,
            backend=job.backend,
        )
        kept_N[rows] = selection.p_clean_N > job.select.tau
        kept_N[job.decided_N] = job.kept_N[job.decided_N]
    shared = group.from_leader_(torch.from_numpy(kept_N.astype(np.uint8)).to(group.device))
    return shared.cpu().numpy().astype(bool)


class SeenLosses:
    """The loss that each sample had when it was last trained on.

    Samples that were not trained on keep the probe's, so that the mixtures still see what the
    selection removed.
    """

    def __init__(self, losses_N: npt.NDArray[np.float32], group: Group) -> None:
        self._group = group
        self._known_N = torch.tensor(losses_N, device=group.device)
        self._fresh_N = torch.zeros_like(self._known_N)
        self._count_N = torch.zeros_like(self._known_N)

    def note(self, rows: torch.Tensor, losses_B: torch.Tensor) -> None:
        """Takes the losses of a batch of this process."""
        self._fresh_N[rows] = losses_B
        self._count_N[rows] += 1

    def merge(self) -> int:
        """Makes what all processes saw known to all; returns how many samples that was."""
        fresh_N, count_N = self._group.sum_(torch.stack([self._fresh_N, self._count_N]))
        self._known_N = torch.where(count_N > 0, fresh_N, self._known_N)
        self._fresh_N, self._count_N = torch.zeros_like(fresh_N), torch.zeros_like(count_N)
        return int((count_N > 0).sum())

    @property
    def known_N(self) -> torch.Tensor:
        """(N,) f32, what was known when they were last merged."""
        return self._known_N

    @known_N.setter
    def known_N(self, losses_N: torch.Tensor) -> None:
        self._known_N = losses_N.to(self._group.device)
