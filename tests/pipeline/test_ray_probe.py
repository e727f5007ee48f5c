"""`probe` over several workers of Ray: the bytes of local processes, whoever is lost."""

from __future__ import annotations

import io
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from clusters import TRAIN, cluster_of

from shardsieve.engines.choice import Engine
from shardsieve.engines.ray_engine import RayExecutor
from shardsieve.engines.ray_worker import Place
from shardsieve.errors import DataError
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines
from shardsieve.stages import probe as module
from shardsieve.stages.probe import Inputs

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2, **TRAIN):
        yield


@pytest.fixture(scope="module")
def run(shards, settings, tmp_path_factory):
    """A run whose probe two local processes trained."""
    out = tmp_path_factory.mktemp("probe") / "RUN"
    config = settings(probe__folds=3, probe__processes=2)
    run_stages(["index", "embed", "probe"], out, config, shards.patterns)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("losses.arrow", "head.safetensors")}


def test_the_bytes_of_local_processes(cluster, run, settings):
    wanted = files_of(run / "probe")
    shutil.rmtree(run / "probe")
    told = io.StringIO()
    config = settings(probe__folds=3, probe__processes=2)
    engine = Engine("ray", workers=2)
    done = run_stages(["probe"], run, config, progress=Lines(told), engine=engine)
    assert files_of(run / "probe") == wanted
    assert done.manifest.stages["probe"].facts["processes"] == 2
    assert "probe: 4,800/4,800 samples" in told.getvalue(), "the engine's one bar"
    assert not list((run / "probe").glob("*.part"))


def train_and_die_once(inputs, config, died, group, out, progress):
    if group.rank == 1 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return module._in_process(inputs, config, 0, "auto", 1, group, out, progress)


def test_a_lost_worker_is_made_good(cluster, run, settings, tmp_path):
    out, told = tmp_path / "out", io.StringIO()
    out.mkdir()
    config = settings(probe__folds=3, probe__processes=2).probe
    inputs = Inputs.of(run / "index", run / "embed", out)
    call = partial(train_and_die_once, inputs, config, tmp_path / "died")
    executor = RayExecutor(Lines(told))
    result = executor.together("probe", call, 2, torch.device("cpu"), out, Lines(told))
    executor.close()
    assert (tmp_path / "died").exists()
    assert result.counts["scored"] == 240
    assert files_of(out) == files_of(run / "probe")


def test_workers_without_the_disk_say_so(cluster, run, settings, monkeypatch):
    class Hidden(Place):
        def __reduce__(self):
            return Place, (self.out, "another disk")

    monkeypatch.setattr("shardsieve.engines.ray_engine.Place", Hidden)
    config = settings(probe__processes=2)
    with pytest.raises(DataError, match=r"index is not to be seen from .* all workers share"):
        run_stages(["probe"], run, config, engine=Engine("ray", workers=2))
