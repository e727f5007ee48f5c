from __future__ import annotations

import pytest
from tiny import write_shards
from tunable import make_job


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """75 samples of 3 classes: five steps of 15 an epoch."""
    return write_shards(tmp_path_factory.mktemp("few"), n_shards=3, per_shard=25)


@pytest.fixture
def job(few, checkpoint, tmp_path):
    """Makes a job in a folder of its own; `changes` are settings of tune."""
    made = []

    def make(**changes):
        made.append(None)
        return make_job(few, checkpoint, tmp_path / f"out-{len(made)}", **changes)

    return make
