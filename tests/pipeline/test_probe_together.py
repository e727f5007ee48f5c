"""`probe` in two processes: every sample scored once, nearly as by one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

import shardsieve
from shardsieve.data.losses import LossTable
from shardsieve.engines.executor import Local
from shardsieve.errors import ConfigError, DataError
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines, Silent
from shardsieve.stages.probe import Inputs, probe_together

# Each starts processes that load torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def alone(shards, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "RUN"
    run_stages(["index", "embed", "probe"], out, settings(probe__folds=3), shards.patterns)
    return out


def losses_of(out: Path) -> LossTable:
    return LossTable.open(out / "probe" / "losses.arrow")


def test_two_processes_find_what_one_finds(alone, shards, settings, tmp_path):
    told = io.StringIO()
    config = settings(probe__folds=3, probe__processes=2)
    run = shardsieve.clean(shards.patterns, tmp_path / "RUN", config, progress=Lines(told))
    assert run.manifest.stages["probe"].facts["processes"] == 2
    ours, wanted = losses_of(run.path), losses_of(alone)
    assert len(ours) == len(wanted)
    np.testing.assert_array_equal(ours.fold_N, wanted.fold_N)
    assert np.isfinite(ours.loss_N).all()
    # Other samples share a step, so the heads are a little others.
    assert np.corrcoef(ours.loss_N, wanted.loss_N)[0, 1] > 0.99
    wrong = np.array([key in shards.wrong for key in run.index.keys_N.to_pylist()])
    assert ours.loss_N[wrong].mean() > 2 * ours.loss_N[~wrong].mean()
    assert not list((run.path / "probe").glob("*.part"))
    again = io.StringIO()
    shardsieve.clean(shards.patterns, run.path, config, progress=Lines(again))
    assert "probe: up to date" in again.getvalue()
    # One process is what every run of before had.
    back = io.StringIO()
    run_stages(["probe"], run.path, settings(probe__folds=3), progress=Lines(back))
    assert "probe: runs again, changed: " in back.getvalue()
    np.testing.assert_array_equal(losses_of(run.path).loss_N, wanted.loss_N)


def inputs_of(run: Path) -> Inputs:
    return Inputs.of(run / "index", run / "embed")


def test_a_folder_of_the_same_name_elsewhere_is_not_taken_for_it(alone):
    inputs = inputs_of(alone)
    inputs.refuse_if_not_here(2)
    other = Inputs(inputs.index, inputs.features, (inputs.records[0], "another"))
    with pytest.raises(DataError, match=r"processes = 2: .*embed is not to be seen from"):
        other.refuse_if_not_here(2)
    gone = Inputs(inputs.index / "gone", inputs.features, inputs.records)
    with pytest.raises(DataError, match="put the run directory on a disk that all workers share"):
        gone.refuse_if_not_here(2)


def together(alone, settings, out, **changes):
    out.mkdir()
    options = {"seed": 0, "device": torch.device("cpu"), "backend": "cpu", "progress": Silent()}
    config = settings(probe__processes=2).probe
    return probe_together(inputs_of(alone), config, out=out, executor=Local(), **options | changes)


def test_damaged_features_arrive_as_one_message(alone, settings, tmp_path):
    file = alone / "embed" / "features-000003.arrow"
    content = bytearray(file.read_bytes())
    # In the middle of the features of the last shard: the second process reads it.
    content[len(content) // 2] ^= 1
    before = file.read_bytes()
    try:
        file.write_bytes(bytes(content))
        with pytest.raises(DataError, match=r"features-000003.arrow: .*checksum differs"):
            together(alone, settings, tmp_path / "damaged")
    finally:
        file.write_bytes(before)


def test_one_gpu_is_not_two(alone, settings, tmp_path):
    with pytest.raises(ConfigError, match=r"probe.processes = 2 with device = cuda:1: that is"):
        together(alone, settings, tmp_path / "one", device=torch.device("cuda:1"))
