"""Copies that are nearly the same, found among many on synthetic features."""

import numpy as np

from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.selection.near_duplicates import near_duplicates


def store(folder, features):
    write_shard(folder, 0, features, np.zeros(len(features), np.uint8), [None] * len(features))
    return FeatureStore.open(folder, 1)


def pictures(n, dim=128, seed=0):
    """Features as networks give them: a common mean, classes, and what is a picture's own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((10, dim))
    own = 0.6 * rng.standard_normal((n, dim))
    return 1.0 + centres[rng.integers(0, 10, n)] + own


def copies_of(pictures, cosine, seed=1):
    """The same pictures with noise added, so that they keep about this cosine."""
    noise = np.random.default_rng(seed).standard_normal(pictures.shape)
    size = np.linalg.norm(pictures, axis=1, keepdims=True) * np.sqrt(1 / cosine**2 - 1)
    return pictures + noise * size / np.sqrt(pictures.shape[1])


def test_finds_copies_and_nothing_else(tmp_path):
    originals = pictures(5000)
    of = np.sort(np.random.default_rng(2).choice(5000, 300, replace=False))
    features = np.concatenate([originals, copies_of(originals[of], 0.97)]).astype(np.float16)
    scratch = tmp_path / "alike.npy"
    found = near_duplicates(store(tmp_path, features), np.arange(5300), 0.95, scratch)
    assert not scratch.exists()
    assert (found[:5000] == -1).all()
    hit = found[5000:] == of
    assert hit.mean() > 0.95
    assert (found[5000:][~hit] == -1).all(), "a copy of something else"


def test_less_alike_is_not_told(tmp_path):
    originals = pictures(1000)
    features = np.concatenate([originals, copies_of(originals[:100], 0.9)]).astype(np.float16)
    found = near_duplicates(store(tmp_path, features), np.arange(1100), 0.95, tmp_path / "alike")
    assert (found == -1).all()


def test_a_leaf_is_compared_in_full(tmp_path):
    originals = pictures(100)
    features = np.concatenate([originals, copies_of(originals, 0.97)]).astype(np.float16)
    rows = np.concatenate([np.arange(1, 100), np.arange(100, 200)])
    found = near_duplicates(store(tmp_path, features), rows, 0.95, tmp_path / "alike")
    assert found.tolist() == [-1] * 101 + list(range(1, 100)), "row 0 is left out"
    none = near_duplicates(store(tmp_path, features), rows[:1], 0.95, tmp_path / "alike")
    assert (none == -1).all()


def test_one_placeholder_for_thousands(tmp_path):
    features = pictures(3000)
    features[5:2000] = copies_of(np.repeat(features[4:5], 1995, axis=0), 0.999)
    found = near_duplicates(store(tmp_path, features), np.arange(3000), 0.99, tmp_path / "alike")
    of = found[5:2000]
    assert ((of >= 4) & (of < np.arange(5, 2000))).all()
    assert (np.delete(found, np.s_[5:2000]) == -1).all()
