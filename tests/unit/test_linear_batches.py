"""How features reach the heads: nothing twice, nothing left out, and never all at once."""

import numpy as np
import pytest
import torch

from shardsieve.config import ProbeConfig
from shardsieve.models.probe import HeadSpec
from shardsieve.models.probe.batches import Resident, Streamed
from shardsieve.models.probe.gradient import LossGradient
from shardsieve.models.probe.minibatch import start_weights, train_minibatch
from shardsieve.models.probe.scaling import fit_scaling
from shardsieve.models.probe.source import ArrayFeatures
from shardsieve.models.probe.targets import Targets

CPU = torch.device("cpu")
ROWS = np.arange(0, 3000, 3)


class Watched(ArrayFeatures):
    """Remembers how many rows were asked for at once."""

    most = 0

    def take(self, rows):
        type(self).most = max(self.most, len(rows))
        return super().take(rows)


def make(kind, features, batch_size=100, piece_rows=64, **more):
    rows = more.pop("rows", ROWS)
    scaling = fit_scaling(features, rows, "none", CPU)
    options = {"batch_size": batch_size, "piece_rows": piece_rows, "seed": 0, "device": CPU}
    if kind is Resident:
        return Resident.load(features, rows, scaling, **options, dtype=torch.float32)
    return Streamed(features, rows, scaling, **options, **more)


def numbered():
    values = np.zeros((3000, 4), np.float32)
    values[:, 0] = np.arange(3000)
    return ArrayFeatures(values)


def seen_rows(batches, pieces):
    """Rows by content, and by position, of some pieces."""
    content, position = [], []
    for inputs, where in pieces:
        content.append(inputs[:, 0].clone().long().numpy())
        order = batches.order.numpy() if isinstance(batches, Resident) else np.arange(len(ROWS))
        position.append(ROWS[order[where]])
    return np.concatenate(content), np.concatenate(position)


KINDS = [(Streamed, {}), (Streamed, {"block_bytes": 200 * 16}), (Resident, {})]


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_an_epoch_shows_every_row_once(kind, more):
    batches = make(kind, numbered(), **more)
    orders = []
    for epoch in range(2):
        sizes, rows = [], []
        for batch in batches.epoch(epoch):
            content, position = seen_rows(batches, batch)
            np.testing.assert_array_equal(content, position)
            sizes.append(len(content))
            rows.append(content)
        assert len(sizes) == batches.per_epoch
        assert max(sizes) <= 100
        assert min(sizes) >= 50
        order = np.concatenate(rows)
        np.testing.assert_array_equal(np.sort(order), ROWS)
        orders.append(order)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_a_pass_without_shuffling_is_always_the_same(kind, more):
    batches = make(kind, numbered(), **more)
    first, position = seen_rows(batches, batches.all())
    np.testing.assert_array_equal(first, position)
    np.testing.assert_array_equal(np.sort(first), ROWS)
    np.testing.assert_array_equal(first, seen_rows(batches, batches.all())[0])
    some, position = seen_rows(batches, batches.sample(10))
    np.testing.assert_array_equal(some, position)
    # From all over the data: it may be sorted by class.
    assert some.min() < 1000
    assert some.max() > 2000


def test_no_more_than_a_block_is_in_memory():
    features = Watched(np.zeros((3000, 4), np.float16))
    batches = make(Streamed, features, block_bytes=256 * 8)
    Watched.most = 0
    for epoch in (batches.epoch(0), [batches.all()]):
        for batch in epoch:
            assert all(len(inputs) <= 64 for inputs, _ in batch)
    assert 0 < Watched.most <= 256


def test_blocks_of_sorted_classes_are_mixed():
    values = np.zeros((20_000, 1), np.float32)
    values[:, 0] = np.arange(20_000) // 2000
    rows = np.arange(20_000)
    batches = make(Streamed, ArrayFeatures(values), block_bytes=4000 * 4, rows=rows)
    for batch in batches.epoch(0):
        labels = np.concatenate([inputs[:, 0].clone().numpy() for inputs, _ in batch])
        assert len(np.unique(labels)) >= 8


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_every_way_trains_the_same_classifier(kind, more):
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 3, 3000).astype(np.int32)
    values = (np.eye(3)[label_N] * 2 + rng.normal(0, 1, (3000, 3))).astype(np.float32)
    specs = [HeadSpec(lr=0.03)]
    batches = make(kind, ArrayFeatures(values), **more)
    order = batches.order if kind is Resident else None
    targets = Targets(label_N[ROWS], None, None, specs, order=order, device=CPU)
    parameters = start_weights(specs, 3, 3)
    curve = train_minibatch(
        parameters,
        batches,
        targets,
        LossGradient(torch.tensor([0.7]), 3, dtype=torch.float32, backend="cpu"),
        specs,
        epochs=ProbeConfig().epochs,
        on_epoch=lambda epoch: None,
        advance=lambda amount: None,
    )
    assert float(curve[-1, 0]) < 0.35
    predicted = (torch.from_numpy(values) @ parameters[:-1] + parameters[-1]).argmax(1)
    best = (values.argmax(1) == label_N).mean()
    assert (predicted.numpy() == label_N).mean() > best - 0.01
