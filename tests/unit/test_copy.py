"""Byte ranges of one tar become another."""

import hashlib
import io
import itertools
import random
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.errors import ShardError
from shardsieve.shards.copy import coalesce, copy_ranges
from shardsieve.shards.samples import scan_samples
from shardsieve.shards.tar import END_OF_ARCHIVE, TarScan

spans = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5).map(lambda n: 512 * n)), min_size=1, max_size=30
)


@given(spans)
def test_coalesce_keeps_every_byte_and_nothing_else(gaps_and_sizes):
    position, offsets, sizes = 0, [], []
    for gap, size in gaps_and_sizes:
        position += 512 * gap
        offsets.append(position)
        sizes.append(size)
        position += size
    joined = coalesce(np.array(offsets, np.int64), np.array(sizes, np.int64)).tolist()

    def blocks(pairs):
        return [block for start, end in pairs for block in range(start, end, 512)]

    spans = [(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
    assert blocks(joined) == blocks(spans)
    assert joined[0][0] == offsets[0]
    # As few ranges as possible: none begins where the one before it ends.
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(joined))


def test_coalesce_by_hand():
    offsets, sizes = np.array([0, 512, 2048, 2560, 9216]), np.array([512, 1024, 512, 512, 1024])
    assert coalesce(offsets, sizes).tolist() == [[0, 1536], [2048, 3072], [9216, 10240]]


def make_tar(names, layout=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
        for number, name in enumerate(names):
            content = random.Random(number).randbytes(300 * number)
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_500_000_000.25 + number, 0o640
            info.uid, info.uname = 1234, "käthe"
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def listing(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            (m.name, m.mtime, m.mode, m.uid, m.uname, tar.extractfile(m).read())
            for m in tar.getmembers()
        ]


def copied(tmp_path, data, ranges):
    source, target = tmp_path / "in.tar", tmp_path / "clean-000000.tar"
    source.write_bytes(data)
    size, sha256 = copy_ranges(source, np.array(ranges, np.int64).reshape(-1, 2), target)
    written = target.read_bytes()
    assert size == len(written)
    assert sha256 == hashlib.sha256(written).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, source.name]
    return written


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ranges_byte_for_byte(tmp_path, layout):
    stem = "x" * 60 if layout == tarfile.USTAR_FORMAT else "long/" * 50 + "ü"
    data = make_tar([f"{stem}{i}.{kind}" for i in range(5) for kind in ("jpg", "cls")], layout)
    samples = list(scan_samples(TarScan(data), tmp_path))
    chosen = [samples[1], samples[2], samples[4]]
    ranges = coalesce(
        np.array([s.start for s in chosen]), np.array([s.end - s.start for s in chosen])
    )
    assert len(ranges) == 2
    written = copied(tmp_path, data, ranges)
    assert written == b"".join(data[start:end] for start, end in ranges) + END_OF_ARCHIVE
    everything = listing(data)
    assert listing(written) == everything[2:6] + everything[8:10]


def test_pieces_larger_than_the_buffer(tmp_path, monkeypatch):
    data = random.Random(0).randbytes(512 * 100)
    monkeypatch.setattr("shardsieve.shards.copy._COPY_BYTES", 700)
    written = copied(tmp_path, data, [(512, 2048), (10240, 51200)])
    assert written == data[512:2048] + data[10240:] + END_OF_ARCHIVE


def test_no_range_at_all_is_an_empty_archive(tmp_path):
    assert listing(copied(tmp_path, make_tar(["a.jpg"]), [])) == []


def test_a_last_member_without_its_padding(tmp_path):
    # The shard was cut inside padding: the sample is whole, its range is off the grid.
    data = make_tar(["a.jpg", "a.cls"], tarfile.GNU_FORMAT)[: 512 + 512 + 300]
    (sample,) = scan_samples(TarScan(data), tmp_path)
    assert sample.detail is None and sample.end == len(data)
    written = copied(tmp_path, data, [(sample.start, sample.end)])
    assert len(written) % 512 == 0
    assert written.endswith(END_OF_ARCHIVE)
    assert [row[0] for row in listing(written)] == ["a.jpg", "a.cls"]


def failed(tmp_path, ranges, match):
    target = tmp_path / "clean-000000.tar"
    with pytest.raises(ShardError, match=match):
        copy_ranges(tmp_path / "in.tar", np.array(ranges), target)
    assert not target.exists()


def test_a_source_that_became_shorter(tmp_path):
    (tmp_path / "in.tar").write_bytes(bytes(5000))
    failed(tmp_path, [(0, 512), (4096, 6144)], r"in\.tar: ends at byte 5,000, its index says 6,144")
    failed(tmp_path, [(8192, 9216)], r"ends at byte 8,192, its index says 9,216.*run again")


def test_a_source_that_is_gone(tmp_path):
    failed(tmp_path, [(0, 512)], r"in\.tar: No such file or directory\. It was there")


def test_a_failure_leaves_an_older_result_alone(tmp_path):
    (tmp_path / "in.tar").write_bytes(bytes(100))
    target = tmp_path / "clean-000000.tar"
    target.write_bytes(b"older")
    with pytest.raises(ShardError):
        copy_ranges(tmp_path / "in.tar", np.array([(0, 512)]), target)
    assert target.read_bytes() == b"older"
