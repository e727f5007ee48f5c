"""Held-out probes: what they say of a fold does not depend on the labels of that fold."""

import numpy as np
import pytest
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.errors import DataError
from shardsieve.models.held_out import train_held_out
from shardsieve.selection.best import fold_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 120)
    features = 5 * np.eye(3, 10)[truth] + rng.normal(0, 1, (120, 10))
    folder = tmp_path_factory.mktemp("features")
    for shard in range(2):
        part = features[60 * shard : 60 * shard + 60].astype(np.float16)
        write_shard(folder, shard, part, np.zeros(60, np.uint8), [None] * 60)
    return FeatureStore.open(folder, 2), truth.astype(np.int32)


def train(samples, labels, rows, fold, **settings):
    config = ProbeConfig(epochs=5, batch_size=32, lr=0.05, **settings)
    return train_held_out(
        samples[0],
        rows,
        labels,
        3,
        fold,
        config,
        seed=0,
        device=CPU,
        backend="cpu",
        advance=lambda rows: None,
    )


def test_labels_of_a_fold_do_not_reach_its_own_logits(samples):
    rows, fold = np.arange(120), fold_of(120, 3, 0)
    changed = np.where(fold == 1, (samples[1] + 1) % 3, samples[1]).astype(np.int32)
    one = train(samples, samples[1], rows, fold)(rows)
    two = train(samples, changed, rows, fold)(rows)
    np.testing.assert_array_equal(one[fold == 1], two[fold == 1])
    assert not np.array_equal(one[fold == 0], two[fold == 0])
    assert (one.argmax(1) == samples[1]).mean() > 0.9


def test_positions_count_among_the_usable_rows(samples):
    rows = np.flatnonzero(np.arange(120) % 7 != 0)
    logits = train(samples, samples[1], rows, fold_of(len(rows), 3, 0))
    everything = logits(np.arange(len(rows)))
    some = np.array([5, 40, 2])
    np.testing.assert_allclose(logits(some), everything[some], rtol=1e-5, atol=1e-5)
    assert (everything.argmax(1) == samples[1][rows]).mean() > 0.9


def test_divergence_is_an_error_that_names_the_setting(samples):
    features, labels = samples
    rows, fold = np.arange(120), fold_of(120, 3, 0)
    with pytest.raises(DataError, match=r"lower probe\.lr"):
        train_held_out(
            features,
            rows,
            labels,
            3,
            fold,
            ProbeConfig(epochs=3, lr=1e36),
            seed=0,
            device=CPU,
            backend="cpu",
            advance=lambda rows: None,
        )
