"""Byte ranges of one tar become another."""

import errno
import hashlib
import io
import itertools
import os
import random
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.errors import DiskError, ShardError
from shardsieve.shards import copy
from shardsieve.shards.copy import coalesce, copy_ranges
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.samples import scan_samples
from shardsieve.shards.tar import END_OF_ARCHIVE, TarScan

spans = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5).map(lambda n: 512 * n)), min_size=1, max_size=30
)


def ranges_of(offsets, sizes, shards=None):
    """Joined ranges of one shard as (start, end)."""
    shards = np.zeros(len(offsets), np.int32) if shards is None else np.array(shards, np.int32)
    joined = coalesce(shards, np.array(offsets, np.int64), np.array(sizes, np.int64))
    assert (joined[:, 0] == 0).all() or shards.any()
    return [tuple(row[1:]) for row in joined.tolist()]


@given(spans)
def test_coalesce_keeps_every_byte_and_nothing_else(gaps_and_sizes):
    position, offsets, sizes = 0, [], []
    for gap, size in gaps_and_sizes:
        position += 512 * gap
        offsets.append(position)
        sizes.append(size)
        position += size
    joined = ranges_of(offsets, sizes)

    def blocks(pairs):
        return [block for start, end in pairs for block in range(start, end, 512)]

    spans = [(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
    assert blocks(joined) == blocks(spans)
    assert joined[0][0] == offsets[0]
    # As few ranges as possible: none begins where the one before it ends.
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(joined))


def test_coalesce_by_hand():
    offsets, sizes = [0, 512, 2048, 2560, 9216], [512, 1024, 512, 512, 1024]
    assert ranges_of(offsets, sizes) == [(0, 1536), (2048, 3072), (9216, 10240)]
    assert ranges_of([], []) == []


def test_ranges_of_different_shards_are_not_joined():
    joined = coalesce(
        np.array([0, 1, 1, 0], np.int32), np.array([0, 512, 1024, 1536]), np.full(4, 512)
    )
    assert joined.tolist() == [[0, 0, 512], [1, 512, 1536], [0, 1536, 2048]]


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


def of_shard_0(ranges):
    ranges = np.array(ranges, np.int64).reshape(-1, 2)
    return np.insert(ranges, 0, 0, axis=1)


def copied(tmp_path, data, ranges):
    source, target = tmp_path / "in.tar", tmp_path / "clean-000000.tar"
    source.write_bytes(data)
    size, sha256 = copy_ranges(ShardFiles([source]), of_shard_0(ranges), target)
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
    ranges = ranges_of([s.start for s in chosen], [s.end - s.start for s in chosen])
    assert len(ranges) == 2
    written = copied(tmp_path, data, ranges)
    assert written == b"".join(data[start:end] for start, end in ranges) + END_OF_ARCHIVE
    everything = listing(data)
    assert listing(written) == everything[2:6] + everything[8:10]


@pytest.fixture(params=[copy._with_copy_file_range, copy._with_sendfile, copy._with_read_and_write])
def way(request, monkeypatch):
    monkeypatch.setattr(copy, "_WAYS", (request.param,))
    return request.param


def test_every_way_copies_the_same_in_pieces(tmp_path, monkeypatch, way):
    data = random.Random(0).randbytes(512 * 100)
    monkeypatch.setattr(copy, "_AT_ONCE", 1024)
    monkeypatch.setattr(copy, "_BUFFER_BYTES", 700)
    written = copied(tmp_path, data, [(512, 2048), (10240, 51200)])
    assert written == data[512:2048] + data[10240:] + END_OF_ARCHIVE


def test_every_way_sees_that_a_source_is_too_short(tmp_path, way):
    (tmp_path / "in.tar").write_bytes(bytes(5000))
    failed(tmp_path, [(0, 512), (4096, 6144)], r"in\.tar: ends at byte 5,000, its index says 6,144")


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=12), st.booleans())
def test_copies_are_their_ranges(spans, short):
    """Whatever the ranges, and however little the kernel copies in one call."""
    import tempfile
    from pathlib import Path

    data = random.Random(1).randbytes(512 * 50)
    ranges = [(512 * start, 512 * (start + size)) for start, size in spans]
    genuine = os.copy_file_range
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if short:
            patch.setattr(
                os,
                "copy_file_range",
                lambda *args, **more: genuine(*args[:2], min(args[2], 300), **more),
            )
        assert copied(Path(folder), data, ranges) == (
            b"".join(data[start:end] for start, end in ranges) + END_OF_ARCHIVE
        )


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, None])
@pytest.mark.parametrize("broken", [("copy_file_range",), ("copy_file_range", "sendfile")])
def test_where_the_kernel_cannot_copy_another_way_is_taken(tmp_path, monkeypatch, code, broken):
    calls = []

    def refuse(*_args, **_more):
        calls.append(1)
        if code is None:
            return 0
        raise OSError(code, os.strerror(code))

    for name in broken:
        monkeypatch.setattr(os, name, refuse)
    data = random.Random(2).randbytes(512 * 20)
    ranges = [(0, 512), (1024, 5120), (6144, 10240)]
    written = copied(tmp_path, data, ranges)
    assert written == b"".join(data[start:end] for start, end in ranges) + END_OF_ARCHIVE
    assert len(calls) == len(broken), "what cannot work is tried once, not for every range"


def test_half_way_through_a_range_the_next_way_goes_on(tmp_path, monkeypatch):
    genuine, calls = os.copy_file_range, []

    def once(*args, **more):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "no")
        return genuine(*args[:2], 700, **more)

    monkeypatch.setattr(os, "copy_file_range", once)
    data = random.Random(3).randbytes(512 * 20)
    assert copied(tmp_path, data, [(512, 10240)]) == data[512:] + END_OF_ARCHIVE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more(tmp_path, monkeypatch, code):
    def refuse(*_args, **_more):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    (tmp_path / "in.tar").write_bytes(bytes(1024))
    target = tmp_path / "clean-000000.tar"
    with pytest.raises(
        DiskError, match=rf"clean-000000\.tar: cannot be written: {os.strerror(code)}"
    ):
        copy_ranges(ShardFiles([tmp_path / "in.tar"]), of_shard_0([(0, 512)]), target)
    assert not target.exists()


def test_an_error_of_the_source_names_the_source(tmp_path, monkeypatch):
    def broken(*_args, **_more):
        raise OSError(errno.EIO, "Input/output error")

    for name in ("copy_file_range", "sendfile", "pread"):
        monkeypatch.setattr(os, name, broken)
    (tmp_path / "in.tar").write_bytes(bytes(1024))
    failed(tmp_path, [(512, 1024)], r"in\.tar at byte 512: Input/output error")


def test_without_a_hash(tmp_path):
    (tmp_path / "in.tar").write_bytes(bytes(1024))
    size, sha256 = copy_ranges(
        ShardFiles([tmp_path / "in.tar"]), of_shard_0([(0, 512)]), tmp_path / "a.tar", sha256=False
    )
    assert (size, sha256) == (512 + 1024, None)


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
        copy_ranges(ShardFiles([tmp_path / "in.tar"]), of_shard_0(ranges), target)
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
        copy_ranges(ShardFiles([tmp_path / "in.tar"]), of_shard_0([(0, 512)]), target)
    assert target.read_bytes() == b"older"
