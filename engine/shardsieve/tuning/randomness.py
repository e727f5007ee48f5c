"""Random numbers that depend on where they are drawn, not on what was drawn before."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from shardsieve.engines.local import usable_cores

# What the draws are for: streams of one seed that have nothing to do with each other.
DRAW, AUGMENT, STEP = 2, 3, 4
_MOST_THREADS = 1024


def seed_everything(*numbers: int) -> None:
    """Seeds torch, numpy and python by some numbers.

    timm draws from all three: RandAugment and mixup from numpy, crops from python, dropout from
    torch.
    """
    state = np.random.SeedSequence(numbers).generate_state(3, np.uint32).tolist()
    torch.manual_seed(state[0])
    np.random.seed(state[1])  # noqa: NPY002
    random.seed(state[2])


def threads_of(world: int) -> int:
    """Returns how many threads torch computes with in each of `world` processes on a CPU.

    Their number decides the last bits of a sum. What torch says of it depends on what else ran in
    the process: Numba changes it.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, (int(asked) if asked.isdigit() else usable_cores(most=_MOST_THREADS)) // world)


@contextmanager
def caller_undisturbed(threads: int) -> Iterator[None]:
    """Gives generators and threads of the process back as they were, and sets the threads.

    Args:
        threads: With how many torch is to compute.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
