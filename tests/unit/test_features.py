"""FeatureStore and LossTable: what is written is what is read, in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.data.features import FeatureStore, shard_file, write_shard
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason

shard_sizes = st.lists(st.integers(0, 7), min_size=1, max_size=6)


def store_of(folder, sizes, dim, seed=0):
    """Writes random shards; returns the store and the same values in plain arrays."""
    rng = np.random.default_rng(seed)
    features, reasons, details = [], [], []
    for shard, size in enumerate(sizes):
        features.append(rng.normal(size=(size, dim)).astype(np.float16))
        reasons.append(rng.choice([0, int(Reason.UNDECODABLE)], size).astype(np.uint8))
        details += [None if reason == 0 else f"row {shard}" for reason in reasons[-1]]
        write_shard(folder, shard, features[-1], reasons[-1], details[len(details) - size :])
    store = FeatureStore.open(folder, len(sizes))
    return store, np.concatenate(features), np.concatenate(reasons), details


@given(sizes=shard_sizes, dim=st.integers(1, 5), data=st.data())
def test_take_is_indexing(tmp_path_factory, sizes, dim, data):
    store, features_ND, reason_N, details = store_of(tmp_path_factory.mktemp("f"), sizes, dim)
    assert len(store) == len(features_ND) == sum(sizes)
    assert store.dim == dim
    assert store.starts.tolist() == [sum(sizes[:shard]) for shard in range(len(sizes) + 1)]
    assert np.array_equal(store.reason_N, reason_N) and store.reason_N.dtype == np.uint8
    assert store.details.to_pylist() == details
    row = st.integers(0, max(sum(sizes) - 1, 0))
    rows = np.array(data.draw(st.lists(row, max_size=20 if sum(sizes) else 0)), np.int64)
    taken = store.take(rows)
    assert taken.dtype == np.float16
    assert np.array_equal(taken, features_ND[rows])


@given(size=st.integers(1, 9), n_rows=st.integers(0, 30), seed=st.integers(0, 99))
def test_blocks_are_pieces_of_the_rows_in_order(tmp_path_factory, size, n_rows, seed):
    store, features_ND, *_ = store_of(tmp_path_factory.mktemp("f"), [4, 0, 6], 3)
    rows = np.random.default_rng(seed).integers(0, 10, n_rows)
    blocks = list(store.blocks(rows, size))
    assert [len(piece) for piece, _ in blocks[:-1]] == [size] * max(len(blocks) - 1, 0)
    assert all(0 < len(piece) <= size for piece, _ in blocks)
    assert np.concatenate([rows[:0], *(piece for piece, _ in blocks)]).tolist() == rows.tolist()
    for piece, features_BD in blocks:
        assert np.array_equal(features_BD, features_ND[piece])


def test_shards_without_rows(tmp_path):
    store, features_ND, *_ = store_of(tmp_path, [0, 0, 3, 0], 4)
    assert [part.shape for part in store.parts] == [(0, 4), (0, 4), (3, 4), (0, 4)]
    assert np.array_equal(store.take(np.array([2, 0, 1, 2])), features_ND[[2, 0, 1, 2]])
    nothing, *_ = store_of(tmp_path / "..", [0], 4)
    assert len(nothing) == 0
    assert nothing.take(np.array([], np.int64)).shape == (0, 4)
    assert list(nothing.blocks(np.array([], np.int64), 8)) == []


def test_bits_survive(tmp_path):
    special = np.array([[0.0, -0.0, 65504, 6e-8, np.inf, np.nan]], np.float16)
    write_shard(tmp_path, 0, special, np.zeros(1, np.uint8), [None])
    stored = FeatureStore.open(tmp_path, 1).take(np.array([0]))
    assert stored.tobytes() == special.tobytes()


def test_features_in_other_memory_orders(tmp_path):
    features_ND = np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4))
    write_shard(tmp_path, 0, features_ND, np.zeros(3, np.uint8), [None] * 3)
    write_shard(tmp_path, 1, features_ND[::-1], np.zeros(3, np.uint8), [None] * 3)
    expected = np.concatenate([features_ND, features_ND[::-1]])
    assert np.array_equal(FeatureStore.open(tmp_path, 2).take(np.arange(6)), expected)


def test_the_features_are_mapped_not_read(tmp_path):
    store, *_ = store_of(tmp_path, [5], 3)
    assert not store.parts[0].flags.owndata and not store.parts[0].flags.writeable


def test_a_shard_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    store_of(tmp_path, [2], 3)
    before = shard_file(tmp_path, 0).read_bytes()
    monkeypatch.setattr("shardsieve.data.table.os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path, 0, np.ones((9, 3), np.float16), np.zeros(9, np.uint8), [None] * 9)
    assert shard_file(tmp_path, 0).read_bytes() == before


def test_loss_table(tmp_path):
    table = LossTable(
        np.array([0.5, np.nan], np.float32),
        np.array([-1, 1], np.float32),
        np.array([3, -1], np.int32),
        np.array([0, -1], np.int8),
    )
    table.write(tmp_path / "losses.arrow")
    again = LossTable.open(tmp_path / "losses.arrow")
    assert len(again) == 2
    for name in ("loss_N", "margin_N", "pred_N", "fold_N"):
        ours, theirs = getattr(again, name), getattr(table, name)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def test_an_empty_loss_table_says_that_nothing_was_scored():
    table = LossTable.empty(3)
    assert np.isnan(table.loss_N).all() and np.isnan(table.margin_N).all()
    assert table.pred_N.tolist() == table.fold_N.tolist() == [-1, -1, -1]
    assert table.loss_N.dtype == np.float32 and table.fold_N.dtype == np.int8
