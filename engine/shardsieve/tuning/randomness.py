"""Random numbers that depend on where they are drawn, not on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What the draws are for: streams of one seed that have nothing to do with each other.
DRAW, AUGMENT, STEP = 2, 3, 4


def seed_everything(*numbers: int) -> None:
    """Seeds torch, numpy and python by some numbers.

    timm draws from all three: RandAugment and mixup from numpy, crops from python, dropout from
    torch.
    """
    state = np.random.SeedSequence(numbers).generate_state(3, np.uint32).tolist()
    torch.manual_seed(state[0])
    np.random.seed(state[1])  # noqa: NPY002
    random.seed(state[2])


@contextmanager
def caller_undisturbed() -> Iterator[None]:
    """Gives the generators of the process back as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
