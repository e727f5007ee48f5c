"""Processes that share the steps of the probe: the heads of one, whatever each of them has."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch

from shardsieve.config import ProbeConfig, load_config
from shardsieve.errors import ConfigError
from shardsieve.models.probe import HeadSpec, train_heads
from shardsieve.models.probe.batches import Resident, Streamed
from shardsieve.models.probe.scaling import fit_scaling
from shardsieve.models.probe.source import ArrayFeatures, Window

CPU = torch.device("cpu")
PLAIN = HeadSpec(lr=0.05)


class Thread:
    """A process as a thread, which adds up with the others in the order of their ranks."""

    def __init__(self, rank, world, barrier, desk):
        self.rank, self.world = rank, world
        self._barrier, self._desk = barrier, desk

    def sum_(self, numbers):
        return self._exchange(numbers, lambda all_of_them: sum(all_of_them[1:], all_of_them[0]))

    def from_leader_(self, numbers):
        return self._exchange(numbers, lambda all_of_them: all_of_them[0])

    def _exchange(self, numbers, joined):
        self._desk[self.rank] = numbers.clone()
        self._barrier.wait(30)
        numbers.copy_(joined(list(self._desk)))
        self._barrier.wait(30)
        return numbers


def together(world, call):
    """Calls `call(group)` in each of them."""
    barrier, desk = threading.Barrier(world), [None] * world

    def one(rank):
        try:
            return call(Thread(rank, world, barrier, desk))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(one, rank) for rank in range(world)]
        wait(futures)
    for error in (future.exception() for future in futures):
        # One that waited for another that failed has nothing to say.
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


def blobs(n_samples, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n_samples)
    features = rng.normal(0, 2, (4, 12))[true] + rng.normal(0, 1, (n_samples, 12))
    given = np.where(rng.random(n_samples) < 0.3, rng.integers(0, 4, n_samples), true)
    return features.astype(np.float32), given.astype(np.int32), true


def train(features, labels, specs, group=None, fold_N=None, weight=None, **settings):
    options = {} if group is None else {"group": group}
    config = ProbeConfig(**settings)
    return train_heads(
        features,
        labels,
        specs,
        config,
        n_classes=4,
        fold_N=fold_N,
        weight=weight,
        # Not all of Numba's ways to have threads can be called from several.
        backend="reference",
        **options,
    )


def trained_together(world, features, labels, specs, *, fold_N=None, weight=None, **settings):
    def call(group):
        edges = [len(labels) * rank // world for rank in (group.rank, group.rank + 1)]
        own = slice(*edges)
        return train(
            Window(ArrayFeatures(features), *edges),
            labels[own],
            specs,
            group,
            None if fold_N is None else fold_N[own],
            None if weight is None else weight[own],
            **settings,
        )

    return together(world, call)


def assert_all_alike(results):
    (first, curve), *others = results
    for heads, told in others:
        assert torch.equal(heads.weight_DHK, first.weight_DHK)
        assert torch.equal(heads.bias_HK, first.bias_HK)
        assert torch.equal(heads.scaling.scale_D, first.scaling.scale_D)
        np.testing.assert_array_equal(told, curve)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("normalise", ["standardise", "l2", "none"])
@pytest.mark.parametrize("world", [2, 3])
def test_steps_over_everything_are_those_of_one(world, normalise, weighted):
    features, labels, _ = blobs(401)
    rng = np.random.default_rng(1)
    extras, folds = {}, [None]
    if weighted:
        extras = {"fold_N": rng.integers(0, 3, 401), "weight": rng.random(401).astype(np.float32)}
        folds = [None, 0, 2]
    specs = [HeadSpec(q, 0.05, fold=fold) for q in (0.3, 0.7) for fold in folds]
    settings = {"batch_size": 1000, "epochs": 15, "normalise": normalise} | extras
    alone, curve = train(features, labels, specs, **settings)
    results = trained_together(world, features, labels, specs, **settings)
    assert_all_alike(results)
    heads, told = results[0]
    np.testing.assert_allclose(told, curve, rtol=1e-5)
    torch.testing.assert_close(heads.weight_DHK, alone.weight_DHK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.bias_HK, alone.bias_HK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold_N", [None, np.arange(500) % 3])
@pytest.mark.parametrize(("world", "batch_size"), [(2, 64), (3, 64), (3, 3), (5, 7)])
def test_small_steps_learn_as_much(world, batch_size, fold_N):
    features, labels, true = blobs(500)
    specs = [PLAIN] if fold_N is None else [HeadSpec(lr=0.05, fold=1)]
    settings = {"batch_size": batch_size, "epochs": 4, "fold_N": fold_N}
    alone, _ = train(features, labels, specs, **settings)
    results = trained_together(world, features, labels, specs, **settings)
    assert_all_alike(results)

    def right(heads):
        return np.mean(heads.logits(torch.from_numpy(features))[:, 0].argmax(1).numpy() == true)

    assert right(alone) > 0.9
    assert abs(right(results[0][0]) - right(alone)) < 0.03


def test_the_scaling_of_all_samples():
    rng = np.random.default_rng(2)
    features = (rng.normal(50, 1, (700, 8)) * np.linspace(0.1, 4, 8)).astype(np.float32)
    source = ArrayFeatures(features)
    wanted = fit_scaling(source, np.arange(700), "l2", CPU)

    def call(group):
        rows = np.arange(group.rank * 350, group.rank * 350 + 350)
        return fit_scaling(source, rows, "l2", CPU, group)

    for found in together(2, call):
        torch.testing.assert_close(found.shift_D, wanted.shift_D)
        torch.testing.assert_close(found.scale_D, wanted.scale_D)
        assert found.norm == pytest.approx(wanted.norm)


@pytest.mark.parametrize("batch_size", [5, 12.5, 64])
def test_equally_many_steps_though_one_has_a_row_less(batch_size):
    """4,033 rows in blocks of 64: the last one has a single row, and none with a row less."""
    features = ArrayFeatures(np.arange(4033 * 8, dtype=np.float32).reshape(4033, 8))
    scaling = fit_scaling(features, np.arange(4033), "none", CPU)
    batches = [
        Streamed(
            features,
            np.arange(n_rows),
            scaling,
            batch_size=batch_size,
            piece_rows=64,
            seed=0,
            device=CPU,
            longest=4033,
            block_bytes=64 * 8 * 4,
        )
        for n_rows in (4033, 4032)
    ]
    steps = []
    for one, n_rows in zip(batches, (4033, 4032), strict=True):
        seen = [[where.tolist() for _, where in batch] for batch in one.epoch(3)]
        steps.append(len(seen))
        assert sorted(row for step in seen for piece in step for row in piece) == list(
            range(n_rows)
        )
    assert steps == [batches[0].per_epoch, batches[1].per_epoch]
    assert steps[0] == steps[1]
    assert not seen[-1], "the last step of the one with a row less"


@pytest.mark.parametrize("batch_size", [5, 12.5, 64])
def test_equally_many_steps_where_all_features_are_resident(batch_size):
    for n_rows in (65, 64):
        resident = Resident(
            torch.zeros(n_rows, 3),
            torch.arange(n_rows),
            batch_size=batch_size,
            piece_rows=16,
            seed=0,
            longest=65,
        )
        steps = [sum(len(piece) for piece, _ in batch) for batch in resident.epoch(0)]
        assert len(steps) == resident.per_epoch == math.ceil(65 / batch_size)
        assert sum(steps) == n_rows


def test_what_cannot_work_is_refused():
    features, labels, _ = blobs(100)

    def unequal(group):
        own = slice(0, 60) if group.rank == 0 else slice(60, 100)
        return train(features[own], labels[own], [PLAIN], group)

    with pytest.raises(ValueError, match=r"equally many rows, found \[60.0, 40.0\]"):
        together(2, unequal)
    with pytest.raises(ValueError, match="not with mm"):
        trained_together(2, features, labels, [PLAIN], solver="mm")
    with pytest.raises(ConfigError, match="for the solver minibatch alone"):
        load_config(values={"probe.processes": 2, "probe.solver": "ridge"})
    with pytest.raises(ConfigError, match="more than a step has samples"):
        load_config(values={"probe.processes": 9, "probe.batch_size": 8})
