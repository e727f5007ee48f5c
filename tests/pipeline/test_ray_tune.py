"""`tune` by Ray Train: the weights of local processes, whoever is lost on the way."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
from clusters import TRAIN, cluster_of
from tiny import write_shards
from tunable import make_job, run_job, train_and_die_once

from shardsieve.engines.ray_engine import RayExecutor
from shardsieve.engines.ray_worker import Place
from shardsieve.errors import DataError
from shardsieve.progress import Lines, Silent
from shardsieve.stages.tune import tune

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(500)]
# A moving average and moments have a state; each step is split over both and in parts.
OPTIONS = {"processes": 2, "ema_decay": 0.9, "accumulate": 2, "warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2, **TRAIN):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """Makes jobs over 75 samples of 3 classes: five steps an epoch."""
    folder = tmp_path_factory.mktemp("tune")
    few = write_shards(folder / "shards", n_shards=3, per_shard=25)
    return lambda name, **changes: make_job(few, checkpoint, folder / name, **OPTIONS | changes)


@pytest.fixture(scope="module")
def undisturbed(made):
    job = made("undisturbed")
    run_job(job)
    return job


def on_ray(job, progress=None):
    executor = RayExecutor(progress or Silent())
    try:
        device = torch.device("cpu")
        return tune(job, device=device, progress=progress or Silent(), executor=executor)
    finally:
        executor.close()


def assert_same(job, other):
    name = "model.safetensors"
    assert (job.out / name).read_bytes() == (other.out / name).read_bytes()


def test_without_a_common_disk_the_weights_of_local_processes(
    cluster, made, undisturbed, monkeypatch
):
    class Hidden(Place):
        def __reduce__(self):
            return Place, (self.out, "another disk")

    monkeypatch.setattr("shardsieve.engines.ray_engine.Place", Hidden)
    job, told = made("elsewhere"), io.StringIO()
    result = on_ray(job, Lines(told))
    assert_same(job, undisturbed)
    assert result.facts["processes"] == 2
    assert "tune 1/2: 75/75 images" in told.getvalue(), "the engine's one bar"
    left = {path.name for path in job.out.iterdir()}
    assert left == {"model.safetensors", "metrics.jsonl", "resume.part"}


@pytest.mark.soak
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("leads", [True, False])
def test_a_lost_worker_costs_the_steps_since_the_last_state(
    cluster, made, undisturbed, monkeypatch, shared, leads
):
    """Killed in the middle of the second epoch."""

    class Hidden(Place):
        def __reduce__(self):
            return Place, (self.out, self.token if shared else "another disk")

    monkeypatch.setattr("shardsieve.engines.ray_engine.Place", Hidden)
    job, told = made(f"lost-{shared}-{leads}", checkpoint_steps=2), io.StringIO()
    # The eighth step is the third of the second epoch.
    call = partial(train_and_die_once, job, job.out / "died", 0 if leads else 1, 8)
    executor = RayExecutor(Lines(told))
    result = executor.together("tune", call, 2, torch.device("cpu"), job.out, Lines(told))
    executor.close()
    assert (job.out / "died").exists()
    assert "a worker was lost" in told.getvalue()
    assert "goes on after step 2 of epoch 2" in told.getvalue()
    assert_same(job, undisturbed)
    assert [row["seen"] for row in result.facts["metrics"]] == [75, 75]


@pytest.mark.soak
def test_what_would_happen_again_is_not_tried_again(cluster, made):
    job = made("refused", lr=1e30)
    with pytest.raises(DataError, match=r"the training loss is .*; lower tune.lr"):
        on_ray(job)
    assert not (job.out / "from-workers").exists()
