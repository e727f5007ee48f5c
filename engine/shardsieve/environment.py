"""What the libraries under torch read from the environment, once, when they are loaded."""

from __future__ import annotations

import os

SETTINGS = {
    # Decoding shares the cores with the network: threads that spin while they wait take them away.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Large tensors on pages of 2 MB where Linux has them: a network on a CPU makes and drops
    # hundreds of megabytes a batch, and a tenth of the time went into faults of small pages.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def set_up() -> None:
    """Sets what the user has not set; before torch is loaded, and without changing any result."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
