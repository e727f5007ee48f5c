"""Which sample goes into which output shard."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.shards.layout import lay_out, per_class, within_quota


def index_of(shards, sizes, labels=None):
    """An index whose samples lie one behind the other in their shards."""
    shards, sizes = np.array(shards, np.int32), np.array(sizes, np.int64)
    n = len(shards)
    offsets = np.zeros(n, np.int64)
    for shard in np.unique(shards):
        inside = shards == shard
        offsets[inside] = np.cumsum(sizes[inside]) - sizes[inside]
    columns = {
        "key": [f"k{row}" for row in range(n)],
        "shard": shards,
        "offset": offsets,
        "size": sizes,
        "image_offset": offsets,
        "image_size": sizes,
        "label": np.array(labels if labels is not None else np.zeros(n), np.int32),
        "reason": np.zeros(n, np.uint8),
        "detail": pa.nulls(n, pa.string()),
    }
    refs = tuple(
        ShardRef(f"/in/{number}.tar", 0, 0, int((shards == number).sum()))
        for number in range(int(shards.max(initial=-1)) + 1)
    )
    return SampleIndex(pa.table(columns, schema=SCHEMA), refs, ("a", "b", "c"))


def laid_out(index, mask=None, **options):
    options = {"shard_samples": None, "shard_bytes": None, "order": "source", "seed": 0} | options
    mask = np.ones(len(index), bool) if mask is None else np.array(mask, bool)
    return lay_out("clean", index, mask, **options)


def rows_of(layout):
    return [layout.rows(number).tolist() for number in range(len(layout))]


def test_one_output_shard_for_every_input_shard_that_gives_something():
    index = index_of([0, 0, 1, 2, 2, 3], [512] * 6)
    layout = laid_out(index, [1, 0, 0, 1, 1, 1])
    assert rows_of(layout) == [[0], [3, 4], [5]]
    assert [layout.source(number) for number in range(3)] == [0, 2, 3]
    assert [layout.file(number) for number in (0, 2)] == ["clean-000000.tar", "clean-000002.tar"]


def test_by_count_across_input_shards():
    index = index_of([0, 0, 1, 1, 2], [512] * 5)
    layout = laid_out(index, shard_samples=2)
    assert rows_of(layout) == [[0, 1], [2, 3], [4]]
    layout = laid_out(index, [1, 1, 1, 0, 1], shard_samples=3)
    assert rows_of(layout) == [[0, 1, 2], [4]]
    assert [layout.source(number) for number in range(2)] == [None, 2]
    assert layout.ranges(0).tolist() == [[0, 0, 1024], [1, 0, 512]]


def test_by_bytes():
    # 1,024 bytes end an archive; a sample that is too large stands alone.
    index = index_of([0] * 5, [512, 512, 4096, 512, 512])
    assert rows_of(laid_out(index, shard_bytes=2048)) == [[0, 1], [2], [3, 4]]
    assert rows_of(laid_out(index, shard_bytes=2047)) == [[0], [1], [2], [3], [4]]
    assert rows_of(laid_out(index, shard_bytes=1 << 30)) == [[0, 1, 2, 3, 4]]
    both = laid_out(index, shard_bytes=1 << 30, shard_samples=4)
    assert rows_of(both) == [[0, 1, 2, 3], [4]]


def test_sizes_count_padding_and_the_end():
    index = index_of([0, 1], [700, 512])
    layout = laid_out(index, shard_samples=2)
    assert list(layout.sizes()) == [1024 + 512 + 1024]
    assert layout.starts(0).tolist() == [0, 1024]


def test_nothing_to_lay_out():
    for options in ({}, {"shard_samples": 3}, {"order": "shuffle"}):
        assert len(laid_out(index_of([0], [512]), [0], **options)) == 0


def test_shuffle_depends_on_the_seed_alone():
    index = index_of(np.repeat([0, 1, 2], 20), [512] * 60)
    one, two = (laid_out(index, order="shuffle", seed=7) for _ in range(2))
    assert rows_of(one) == rows_of(two)
    assert [len(rows) for rows in rows_of(one)] == [20, 20, 20]
    assert sorted(one.rows_R.tolist()) == list(range(60)) != one.rows_R.tolist()
    assert rows_of(laid_out(index, order="shuffle", seed=8)) != rows_of(one)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 8), st.booleans()), max_size=40),
    st.one_of(st.none(), st.integers(1, 7)),
    st.one_of(st.none(), st.integers(1, 12_000)),
    st.sampled_from(["source", "shuffle"]),
)
def test_every_sample_once_and_no_shard_too_large(samples, shard_samples, shard_bytes, order):
    samples.sort(key=lambda sample: sample[0])
    index = index_of([s for s, _, _ in samples], [512 * size for _, size, _ in samples])
    mask = [keep for _, _, keep in samples]
    layout = laid_out(
        index, mask, shard_samples=shard_samples, shard_bytes=shard_bytes, order=order
    )
    placed = [row for rows in rows_of(layout) for row in rows]
    assert sorted(placed) == np.flatnonzero(mask).tolist()
    assert order == "shuffle" or placed == sorted(placed)
    for number, rows in enumerate(rows_of(layout)):
        assert rows
        assert shard_samples is None or len(rows) <= shard_samples
        assert shard_bytes is None or len(rows) == 1 or layout.size_bytes(number) <= shard_bytes
        length = sum(end - start for _, start, end in layout.ranges(number).tolist())
        assert length + 1024 == layout.size_bytes(number)


def quota(labels, p_clean, kept=None, cap=None, balance=False):
    kept = np.ones(len(labels), bool) if kept is None else np.array(kept, bool)
    taken = within_quota(
        kept, np.array(labels, np.int32), np.array(p_clean), cap=cap, balance=balance
    )
    return np.flatnonzero(taken).tolist()


def test_quota_takes_the_most_probably_clean_and_then_the_first():
    labels, p_clean = [0, 1, 0, 0, 1, 0], [0.7, 0.9, 0.9, 0.9, 0.8, 0.95]
    assert quota(labels, p_clean) == [0, 1, 2, 3, 4, 5]
    assert quota(labels, p_clean, cap=2) == [1, 2, 4, 5]
    assert quota(labels, p_clean, cap=1) == [1, 5]
    assert quota(labels, p_clean, balance=True) == [1, 2, 4, 5]
    assert quota(labels, p_clean, balance=True, cap=1) == [1, 5]
    assert quota(labels, p_clean, cap=100) == [0, 1, 2, 3, 4, 5]


def test_quota_knows_nothing_of_samples_that_are_not_clean():
    # The smallest class that has any clean sample sets the number; class 2 has none.
    labels, p_clean = [0, 0, 1, 1, 2, -1], [0.9, 0.8, 0.9, 0.1, 0.1, np.nan]
    assert quota(labels, p_clean, kept=[1, 1, 1, 0, 0, 0], balance=True) == [0, 2]
    assert quota(labels, p_clean, kept=[0] * 6, balance=True) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.booleans()), max_size=60))
def test_quota_against_sorting_by_hand(samples):
    labels = [label for label, _, _ in samples]
    p_clean = [p / 5 for _, p, _ in samples]
    kept = [keep for _, _, keep in samples]
    rows = [row for row in range(len(samples)) if kept[row]]
    for cap in (1, 3):
        expected = []
        for label in range(5):
            of_class = [row for row in rows if labels[row] == label]
            expected += sorted(of_class, key=lambda row: (-p_clean[row], row))[:cap]
        assert quota(labels, p_clean, kept, cap=cap) == sorted(expected)


def test_per_class():
    index = index_of([0, 0, 0], [512, 1024, 512], [0, 2, 0])
    rows = per_class(laid_out(index), index.label_N, index.classes)
    assert [tuple(row.values()) for row in rows] == [("a", 2, 1024), ("b", 0, 0), ("c", 1, 1024)]


@pytest.mark.parametrize("chunks", [1, 2])
def test_an_index_in_chunks(chunks):
    index = index_of([0, 0, 1, 1], [512] * 4)
    table = pa.concat_tables([index.table.slice(0, 2), index.table.slice(2)][:chunks])
    index = SampleIndex(table, index.shards, index.classes)
    assert sum(map(len, rows_of(laid_out(index, shard_samples=3)))) == len(index)
