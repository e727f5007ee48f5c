"""`probe` in two processes: every sample scored once, nearly as by one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shardsieve
from shardsieve.data.losses import LossTable
from shardsieve.engines.local import Local
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
    assert "probe: runs again, changed: settings.processes" in back.getvalue()
    np.testing.assert_array_equal(losses_of(run.path).loss_N, wanted.loss_N)


def inputs_of(run: Path, out: Path) -> Inputs:
    return Inputs.of(run / "index", run / "embed", out)


def test_a_folder_of_the_same_name_elsewhere_is_not_taken_for_it(alone, tmp_path):
    inputs = inputs_of(alone, tmp_path)
    inputs.refuse_if_not_here(2, tmp_path)
    other = replace(inputs, records=(inputs.records[0], "another"))
    with pytest.raises(DataError, match=r"processes = 2: .*embed is not to be seen from"):
        other.refuse_if_not_here(2, tmp_path)
    gone = replace(inputs, index=inputs.index / "gone")
    with pytest.raises(DataError, match="put the run directory on a disk that all workers share"):
        gone.refuse_if_not_here(2, tmp_path)
    # A copy of the run directory: the engine has found no common disk.
    with pytest.raises(DataError, match="index is not to be seen from"):
        inputs.refuse_if_not_here(2, tmp_path / "of this worker alone")


def together(alone, settings, out, **changes):
    out.mkdir()
    options = {"seed": 0, "device": torch.device("cpu"), "backend": "auto", "progress": Silent()}
    config = settings(probe__processes=2).probe
    return probe_together(inputs_of(alone, out), config, executor=Local(), **options | changes)


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


def test_the_parts_are_gone_when_the_table_is_there(alone, settings, tmp_path):
    result = together(alone, settings, tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["head.safetensors", "losses.arrow"]
    assert result.counts == {"samples": len(losses_of(alone)), "scored": len(losses_of(alone))}


SCRIPT = """
import sys
from pathlib import Path

import torch

from shardsieve.config import ProbeConfig
from shardsieve.engines.local import Local
from shardsieve.progress import Silent
from shardsieve.stages import probe

train = probe._train


def watched(*arguments):
    result = train(*arguments)
    import numba

    file = Path(sys.argv[3]) / "threads.txt"
    file.write_text(f"{torch.get_num_threads()} {numba.config.NUMBA_NUM_THREADS}")
    return result


probe._train = watched
if __name__ == "__main__":
    index, features, out = map(Path, sys.argv[1:])
    out = out / "out"
    out.mkdir()
    probe.probe_together(
        probe.Inputs.of(index, features, out),
        ProbeConfig(processes=2),
        seed=0,
        device=torch.device("cpu"),
        backend="auto",
        progress=Silent(),
        executor=Local(),
    )
"""


def test_threads_are_a_share_of_the_cores_whatever_has_been_compiled(alone, tmp_path):
    """With an empty cache Numba compiles, and reads its settings anew."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if "_THREADS" not in name}
    environment |= {"OMP_NUM_THREADS": "4", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, script, alone / "index", alone / "embed", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "threads.txt").read_text() == "2 2"


def test_one_gpu_is_not_two(alone, settings, tmp_path):
    says = r"probe.processes = 2 with device = cuda:1: that is"
    with pytest.raises(ConfigError, match=says):
        together(alone, settings, tmp_path / "one", device=torch.device("cuda:1"))
    # Before the stages in front of it run, too.
    with pytest.raises(ConfigError, match=says):
        Local().processes("probe", 2, torch.device("cuda:1"), 512)
