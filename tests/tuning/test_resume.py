"""Killed in mid-epoch and started again, the weights are the same bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import signal

import pytest
from tunable import run_and_count, run_and_die, run_job, weights_of

from shardsieve.errors import DataError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["shardsieve.tuning.trainer", "shardsieve.stages.tune", "timm"])

# Everything that has a state: moving average, two optimiser moments, mixup, RandAugment, dropout.
EVERYTHING = {
    "ema_decay": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.3,
    "erase": 0.5,
    "batch_norm": "trained",
    "warmup_epochs": 0.5,
    "clip_norm": 1.0,
    "layer_decay": 0.7,
    "accumulate": 2,
}


def in_process(call, *arguments):
    process = CONTEXT.Process(target=call, args=arguments)
    process.start()
    process.join(100)
    assert not process.is_alive(), "it hangs"
    return process.exitcode


def go_on(job):
    receiver, sender = CONTEXT.Pipe(duplex=False)
    assert in_process(run_and_count, job, sender) == 0
    return receiver.recv()


def metrics_of(job):
    rows = [json.loads(row) for row in (job.out / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if "seconds" not in name} for row in rows]


def assert_same(one, other):
    assert (one.out / "model.safetensors").read_bytes() == (
        other.out / "model.safetensors"
    ).read_bytes()
    assert metrics_of(one) == metrics_of(other)


@pytest.mark.parametrize("killed_at", [1, 4, 8])
def test_weights_are_the_same_and_no_step_is_done_twice(job, killed_at):
    undisturbed, killed = (job(checkpoint_steps=2, **EVERYTHING) for _ in range(2))
    result = run_job(undisturbed)
    assert in_process(run_and_die, killed, killed_at) == -signal.SIGKILL
    saved = {1: 0, 4: 2, 8: 7}[killed_at]
    assert go_on(killed) == 10 - saved
    assert_same(killed, undisturbed)
    assert [row["seen"] for row in result.facts["metrics"]] == [75, 75]


def test_killed_while_it_validates_no_step_is_done_again(job):
    reference = job()
    validation = reference.samples
    undisturbed, killed = (job(job__validation=validation) for _ in range(2))
    run_job(undisturbed)
    assert in_process(run_and_die, killed, 0, "validation") == -signal.SIGKILL
    assert go_on(killed) == 5
    assert_same(killed, undisturbed)


@pytest.mark.parametrize("how", ["epoch", "running"])
def test_reselection_goes_on_from_what_was_selected(job, how):
    import numpy as np

    options = {"reselect": how, "epochs": 3, "checkpoint_steps": 2}
    losses = np.random.default_rng(0).gamma(1.0, size=75).astype(np.float32)
    undisturbed, killed = (job(**options, job__loss_N=losses) for _ in range(2))
    result = run_job(undisturbed)
    kept = [row["kept"] for row in result.facts["metrics"]]
    assert len(set(kept)) > 1, "nothing was reselected"
    assert in_process(run_and_die, killed, 7) == -signal.SIGKILL
    go_on(killed)
    assert_same(killed, undisturbed)


def test_the_number_of_workers_changes_nothing(job):
    one, other = job(**EVERYTHING), job(**EVERYTHING, job__workers=2)
    run_job(one)
    run_job(other)
    assert_same(one, other)


def test_the_generators_of_the_caller_are_left_alone(job):
    import random

    import numpy as np
    import torch

    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    expected = draws()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    run_job(job(epochs=1, **EVERYTHING))
    assert draws() == expected


def test_a_damaged_state_says_what_to_do(job):
    broken = job()
    (broken.out / "resume.part").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"resume.part: damaged .*delete it"):
        run_job(broken)


def test_another_seed_gives_other_weights(job):
    one, other = job(epochs=1), job(epochs=1, job__seed=1)
    run_job(one)
    run_job(other)
    pairs = zip(weights_of(one).values(), weights_of(other).values(), strict=True)
    assert any(not a.equal(b) for a, b in pairs)
