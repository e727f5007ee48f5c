"""Shards that are opened for scanning, and those that cannot be."""

import bz2
import gzip
import lzma
import random

import pytest

from shardsieve.errors import ShardError
from shardsieve.shards.samples import scan_samples
from shardsieve.shards.tar import TarScan, open_tar
from shardsieve_kernels.testing.tar_scan import make_tar

KINDS = ("jpg", "cls")


def noise(seed, size):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed_tars_are_refused(tmp_path, name, pack):
    # The suffix tells nothing: it is the bytes that count.
    path = tmp_path / "train-0000.tar"
    path.write_bytes(pack(make_tar([("a.jpg", noise(0, 3000))])))
    with pytest.raises(ShardError, match=rf"train-0000.tar: compressed with {name}.*unpack"):
        open_tar(path)


@pytest.mark.parametrize("name", ["BZ-photo.jpg", "BZ"])
def test_a_first_name_that_looks_compressed(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar([(name, b"1")]))
    assert bytes(open_tar(path).buffer) == path.read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\3\4" + noise(0, 4000), noise(0, 511), b"<html>" * 500]
)
def test_not_a_tar(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar: not a tar file"):
        open_tar(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ShardError, match=r"gone\.tar: cannot be read: No such file"):
        open_tar(tmp_path / "gone.tar")
    with pytest.raises(ShardError, match=r"cannot be read: Is a directory"):
        open_tar(tmp_path)


def test_a_mapped_file_reads_like_bytes(tmp_path):
    data = make_tar([(f"{'l/' * 30}{i}.{kind}", noise(i, 900)) for i in range(9) for kind in KINDS])
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    scan = open_tar(path)
    from_file, from_bytes = scan_samples(scan, path), scan_samples(TarScan(data), path)
    assert list(from_file) == list(from_bytes)
    # Pages that were let go of are read anew.
    scan.release(len(data))
    assert bytes(scan.buffer) == data


def test_the_first_block_decides_whether_it_is_a_tar(tmp_path):
    path = tmp_path / "a.tar"
    for content in (make_tar([("x" * 200 + ".jpg", b"1")], "gnu"), bytes(512), make_tar([])):
        path.write_bytes(content)
        assert bytes(open_tar(path).buffer) == content
    path.write_bytes(b"!" + make_tar([("a.jpg", b"1")])[1:])
    with pytest.raises(ShardError, match="not a tar file"):
        open_tar(path)
