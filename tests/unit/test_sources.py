"""Features of shards that have not changed are taken from an earlier store."""

import json
import os

import numpy as np
import pytest

from shardsieve.data.features import FeatureStore, shard_file, write_shard
from shardsieve.errors import ShardError
from shardsieve.shards.samples import stat_shard
from shardsieve.shards.sources import hash_shard, take_over, write_sources


def make_shard(path, content, n_samples=3):
    path.write_bytes(content)
    ref = stat_shard(path)
    return type(ref)(path, ref.size_bytes, ref.mtime_ns, n_samples)


@pytest.fixture
def store(tmp_path):
    """Three shards and the features that were made from them: all ones, all twos, all threes."""
    refs = [make_shard(tmp_path / f"{n}.tar", bytes([n]) * 100) for n in (1, 2, 3)]
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    for number in range(3):
        features = np.full((3, 4), number + 1, np.float16)
        write_shard(old, number, features, np.zeros(3, np.uint8), [None] * 3)
    write_sources(old, "settings", refs, [hash_shard(ref) for ref in refs])
    return old, new, refs


def values(folder, n_shards):
    return [int(part[0, 0]) for part in FeatureStore.open(folder, n_shards).parts]


def test_unchanged_shards_in_another_order(store):
    old, new, refs = store
    taken = take_over(old, new, "settings", refs[::-1])
    assert taken == {number: hash_shard(ref) for number, ref in enumerate(refs[::-1])}
    assert values(new, 3) == [3, 2, 1]
    assert not list(new.glob("*.part"))


def test_a_shard_more_and_a_shard_less(store, tmp_path):
    old, new, refs = store
    more = make_shard(tmp_path / "0.tar", b"another one")
    assert take_over(old, new, "settings", [refs[2], more, refs[0]]).keys() == {0, 2}
    assert [shard_file(new, shard).exists() for shard in range(3)] == [True, False, True]


@pytest.mark.parametrize("content", [b"x" * 100, b"x" * 101])
def test_a_changed_shard(store, content):
    old, new, refs = store
    os.utime(refs[1].path, ns=(0, 0))
    refs[1] = make_shard(refs[1].path, content)
    assert take_over(old, new, "settings", refs).keys() == {0, 2}
    assert not shard_file(new, 1).exists()


def test_the_same_bytes_at_another_time_and_place(store, tmp_path):
    old, new, refs = store
    os.utime(refs[0].path, ns=(5, 5))
    moved = make_shard(tmp_path / "moved.tar", refs[1].path.read_bytes())
    now = [stat_shard(refs[0].path), moved]
    now[0] = type(moved)(now[0].path, now[0].size_bytes, now[0].mtime_ns, 3)
    assert take_over(old, new, "settings", now).keys() == {0, 1}
    assert values(new, 2) == [1, 2]


def test_nothing_is_taken_from_other_settings_or_from_nowhere(store, tmp_path):
    old, new, refs = store
    assert take_over(old, new, "other settings", refs) == {}
    assert take_over(tmp_path / "gone", new, "settings", refs) == {}
    assert not list(new.iterdir())


def test_another_number_of_samples_is_another_shard(store):
    old, new, refs = store
    refs[0] = type(refs[0])(refs[0].path, refs[0].size_bytes, refs[0].mtime_ns, 4)
    assert take_over(old, new, "settings", refs).keys() == {1, 2}


def test_features_that_are_gone_or_there_already(store):
    old, new, refs = store
    shard_file(old, 0).unlink()
    write_shard(new, 1, np.full((3, 4), 9, np.float16), np.zeros(3, np.uint8), [None] * 3)
    assert take_over(old, new, "settings", refs).keys() == {1, 2}
    assert not shard_file(new, 0).exists()
    assert values_of(new, 1) == 9


def values_of(folder, shard):
    from shardsieve.data.table import read_ipc

    return read_ipc(shard_file(folder, shard)).column("feature")[0].as_py()[0]


def test_a_shard_that_changes_after_it_was_indexed_is_no_source(store):
    _, _, refs = store
    refs[0].path.write_bytes(b"y" * 100)
    os.utime(refs[0].path, ns=(7, 7))
    with pytest.raises(ShardError, match=r"1\.tar changed since it was indexed; run again"):
        hash_shard(refs[0])
    refs[1].path.unlink()
    with pytest.raises(ShardError, match=r"2\.tar: No such file.*It was there"):
        hash_shard(refs[1])


def test_sources_are_plain_json(store):
    old, _, refs = store
    about = json.loads((old / "sources.json").read_text())
    assert about["made_with"] == "settings"
    assert [row["path"] for row in about["shards"]] == [str(ref.path) for ref in refs]
