"""Two processes do what one does: the same steps, the same losses, every sample once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import write_shards
from tunable import make_job, run_job, weights_of

from shardsieve.engines.processes import check_batch_norm, check_processes
from shardsieve.errors import ConfigError, DataError
from shardsieve.tuning.order import draw_epoch, share_of

# Each starts processes that load torch.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_clean_sample_is_in_one_step_of_one_process(job, world, parts):
    kept = job().kept_N
    kept[::7] = False
    made = job(batch_size=16, job__kept_N=kept)
    epoch = draw_epoch(made, kept, 0)
    rows = [
        row
        for step in epoch.steps
        for rank in range(world)
        for part in share_of(step, rank, world, parts)
        for row in part.tolist()
    ]
    assert sorted(rows) == np.flatnonzero(kept).tolist()
    other = draw_epoch(made, kept, 1)
    assert [step.tolist() for step in other.steps] != [step.tolist() for step in epoch.steps]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(job):
    """75 samples in steps of 15: a process has 8, the other 7, and its parts are 4 and 4, or 3."""
    options = {
        "batch_size": 16,
        "accumulate": 2,
        "reselect": "epoch",
        "ema_decay": 0.5,
        "warmup_epochs": 0.5,
    }
    losses = np.random.default_rng(0).gamma(1.0, size=75).astype(np.float32)
    alone = job(**options, job__loss_N=losses)
    both = job(**options, job__loss_N=losses, processes=2, job__validation=alone.samples)
    one = run_job(alone).facts["metrics"]
    two = run_job(both).facts["metrics"]
    for ours, wanted in zip(two, one, strict=True):
        assert abs(ours["training_loss"] - wanted["training_loss"]) < 1e-5
        for name in ("kept", "drawn", "seen", "per_class", "lr"):
            assert ours[name] == wanted[name]
        # Seen by anybody, and as many in all steps together: each once.
        assert ours["seen"] == ours["drawn"]
    assert one[0]["seen"] == 75
    assert 0 <= two[-1]["validation_accuracy"] <= 1
    assert [json.loads(row) for row in (both.out / "metrics.jsonl").read_text().splitlines()] == two
    for name, ours in weights_of(both, "last.safetensors").items():
        torch.testing.assert_close(ours, weights_of(alone)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_process_without_samples_waits_for_the_other_and_errors_arrive(checkpoint, tmp_path):
    tiny = write_shards(tmp_path / "shards", n_shards=1, per_shard=25)
    # The steps have one sample: the second process never has any.
    options = {"batch_size": 1, "epochs": 1, "processes": 2, "lr": 1e30}
    lost = make_job(tiny, checkpoint, tmp_path / "lost", **options)
    with pytest.raises(DataError, match=r"the training loss is .*; lower tune.lr"):
        run_job(lost)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="that is one GPU; use cuda"):
        check_processes(2, torch.device("cuda:1"), "tune")
    with pytest.raises(ConfigError, match="needs GPUs"):
        check_batch_norm(2, torch.device("cpu"), "trained")
    check_batch_norm(1, torch.device("cpu"), "trained")
