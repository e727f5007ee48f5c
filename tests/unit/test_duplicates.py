"""The same picture twice, found from features and sizes alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.selection import duplicates
from shardsieve.selection.duplicates import same_pictures


def store(folder, features, shards=2):
    for shard, part in enumerate(np.array_split(features, shards)):
        write_shard(folder, shard, part, np.zeros(len(part), np.uint8), [None] * len(part))
    return FeatureStore.open(folder, shards)


def pictures(n, dim=96, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float16)


def test_finds_the_first_of_each_picture(tmp_path):
    features = pictures(300)
    sizes = np.full(300, 5000)
    again = {250: 3, 40: 3, 299: 7}
    rng = np.random.default_rng(1)
    for later, first in again.items():
        # Another batch gives another rounding.
        rounding = 1 + rng.choice([-1, 0, 1], features.shape[1]) * 2.0**-11
        features[later] = (features[first].astype(np.float32) * rounding).astype(np.float16)
    found = same_pictures(store(tmp_path, features), np.arange(300), sizes)
    want = np.full(300, -1)
    for later, first in again.items():
        want[later] = first
    np.testing.assert_array_equal(found, want)


def test_another_size_is_another_picture(tmp_path):
    features = pictures(20)
    features[11] = features[2]
    sizes = np.full(20, 5000)
    sizes[11] += 1
    assert (same_pictures(store(tmp_path, features), np.arange(20), sizes) == -1).all()


def test_similar_pictures_are_not_the_same(tmp_path):
    features = pictures(200, seed=2)
    near = features[:100].astype(np.float32) + 0.1 * pictures(100, seed=3)
    features[100:] = near.astype(np.float16)
    cosine = (features[:100] * near).sum(1) / np.linalg.norm(features[:100], axis=1)
    assert (cosine / np.linalg.norm(near, axis=1) > 0.99).all()
    found = same_pictures(store(tmp_path, features), np.arange(200), np.ones(200, np.int64))
    assert (found == -1).all()


def test_one_placeholder_for_thousands(tmp_path):
    features = pictures(3000)
    features[5:2500] = features[4]
    found = same_pictures(store(tmp_path, features), np.arange(3000), np.ones(3000, np.int64))
    assert (found[5:2500] == 4).all()
    assert (np.delete(found, np.s_[5:2500]) == -1).all()


def test_rows_that_are_left_out_play_no_part(tmp_path):
    features = pictures(10)
    features[[0, 4, 8]] = features[0]
    rows = np.arange(1, 10)
    found = same_pictures(store(tmp_path, features), rows, np.ones(10, np.int64))
    assert found.tolist() == [-1] * 8 + [4, -1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=40))
def test_agrees_with_comparing_all_pairs(tmp_path_factory, drawn):
    picture, size = np.array(drawn).T
    features = pictures(6)[picture]
    folder = tmp_path_factory.mktemp("features")
    found = same_pictures(store(folder, features, 1), np.arange(len(drawn)), size)
    seen: dict[tuple[int, int], int] = {}
    for row, one in enumerate(drawn):
        assert found[row] == seen.get(one, -1)
        seen.setdefault(one, row)


def test_many_of_one_size_are_not_compared_all_with_all(tmp_path, monkeypatch):
    features = pictures(4000)
    features[[70, 3999]] = features[0]
    compared = []

    def counting(features, row, rows):
        compared.append(len(rows))
        return in_full(features, row, rows)

    in_full = duplicates._same_as
    monkeypatch.setattr(duplicates, "_same_as", counting)
    found = same_pictures(store(tmp_path, features), np.arange(4000), np.full(4000, 3072))
    assert np.flatnonzero(found >= 0).tolist() == [70, 3999]
    # All with all would be eight million.
    assert sum(compared) < 4000
