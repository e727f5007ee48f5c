"""Every solver of the probe in the whole line: it finds the planted noise, in and out of fold."""

import numpy as np
import pytest

import shardsieve


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "RUN"


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("solver", ["mm", "ridge", "minibatch"])
def test_finds_planted_noise(out, shards, settings, solver, folds):
    # One folder: only the probe and what follows it run anew.
    config = settings(probe__solver=solver, probe__folds=folds)
    run = shardsieve.clean(shards.patterns, out, config)
    scores = run.scores
    loss = scores.column("loss").to_numpy(zero_copy_only=False)
    wrong = np.array([key in shards.wrong for key in scores.column("key").to_pylist()])
    assert np.isfinite(loss).all()
    # Colours are easy, whoever learns them.
    assert loss[wrong].mean() > 2 * loss[~wrong].mean()
    assert np.mean(loss[wrong][:, None] > loss[~wrong]) > 0.95
