"""Samples of a shard, against WebDataset; and the byte ranges that are copied."""

import io
import itertools
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from shardsieve.data.reason import Reason
from shardsieve.errors import ShardError
from shardsieve.shards.samples import (
    describe_damage,
    scan_blocks,
    scan_samples,
    stat_shard,
)
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE, TarScan
from shardsieve_kernels.tar_scan import name_hash
from shardsieve_kernels.testing.tar_scan import sealed

SHARD = Path("/data/train-0000.tar")
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def make_tar(files, layout=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
        for number, (name, content) in enumerate(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = (
                len(content or b""),
                1_600_000_000 + number,
                "someone",
            )
            if content is None:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def samples_of(data):
    scan = TarScan(data)
    return list(scan_samples(scan, SHARD)), scan


def shape(samples):
    return [(sample.key, list(sample.members)) for sample in samples]


def noise(seed, size):
    return random.Random(seed).randbytes(size)


def same_members(ours, theirs):
    """Whether two tars hold the same members with the same bytes and the same metadata."""

    def listing(data):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return [
                (m.name, m.mtime, m.uname, m.mode, m.type, m.isreg() and tar.extractfile(m).read())
                for m in tar
            ]

    return listing(ours) == listing(theirs)


ORDINARY = [
    ("a/0001.jpg", noise(1, 900)),
    ("a/0001.cls", b"1"),
    ("a/0002.JPG", noise(2, 513)),
    ("a/0002.seg.png", noise(3, 1)),
    ("a/0002.json", b"{}"),
    ("b/0002.jpg", b""),
    ("b/0002.cls", b"0"),
    ("__meta__", b"x"),
    ("long/" * 40 + "größe.jpg", noise(4, 2000)),
    ("long/" * 40 + "größe.cls", b"2"),
]


@pytest.mark.parametrize("layout", FORMATS[1:])
def test_keys_and_parts_agree_with_webdataset(layout):
    data = make_tar(ORDINARY, layout)
    # What webdataset.WebDataset does with a shard, on a stream that it need not close.
    shard = {"url": "a.tar", "stream": io.BytesIO(data)}
    theirs = list(group_by_keys(tar_file_expander([shard])))
    ours, scan = samples_of(data)
    assert [sample.key for sample in ours] == [sample["__key__"] for sample in theirs]
    for sample, other in zip(ours, theirs, strict=True):
        parts = {
            extension: scan.buffer[member.data : member.data + member.size]
            for extension, member in sample.members.items()
        }
        assert parts == {key: value for key, value in other.items() if key[0] != "_"}
    assert scan.others == 1
    assert describe_damage(scan) == ()


def test_interleaved_keys_are_separate_rows():
    ours, _ = samples_of(make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"0")]))
    assert shape(ours) == [("a", ["jpg"]), ("b", ["jpg"]), ("a", ["cls"])]


def test_a_repeated_extension_begins_the_next_sample():
    files = [("a.jpg", b"1"), ("a.cls", b"0"), ("a.JPG", b"2"), ("a.cls", b"1")]
    ours, _ = samples_of(make_tar(files))
    assert shape(ours) == [("a", ["jpg", "cls"]), ("a", ["jpg", "cls"])]


def test_folders_and_metadata_inside_a_sample_do_not_split_it():
    files = [("d/a.jpg", b"1"), ("d", None), ("__x__", b""), ("readme", b""), ("d/a.cls", b"0")]
    ours, scan = samples_of(make_tar(files))
    assert shape(ours) == [("d/a", ["jpg", "cls"])]
    assert scan.others == 3


def images_of(files, extensions):
    (block,) = scan_blocks(TarScan(make_tar(files)), SHARD)
    members = [sample.members for sample in map(block.sample, range(len(block)))]
    names = [member.name for parts in members for member in parts.values()]
    return [names[m] if m >= 0 else None for m in block.image(extensions).tolist()]


def test_which_member_is_the_image():
    files = [("a.thumb.jpg", b""), ("a.png", b""), ("a.mask.png", b""), ("a.txt", b"")]
    assert images_of(files, ["jpg", "png"]) == ["a.png"]
    assert images_of(files, ["png"]) == ["a.png"]
    assert images_of(files, ["jpg"]) == ["a.thumb.jpg"]
    assert images_of(files, ["thumb.jpg", "png"]) == ["a.thumb.jpg"]
    assert images_of(files, ["g", "jpeg", "pg"]) == [None]
    twice = [("a.1.jpg", b""), ("a.2.jpg", b""), ("b.txt", b""), ("c.cls", b""), ("c.2.jpg", b"")]
    assert images_of(twice, ["jpg"]) == ["a.1.jpg", None, "c.2.jpg"]


def test_first_image_extension_of_the_list_wins():
    files = [("a.png", b""), ("a.jpg", b"")]
    assert images_of(files, ["jpg", "png"]) == ["a.jpg"]
    assert images_of(files, ["png", "jpg"]) == ["a.png"]


def test_a_shard_that_ends_inside_a_member():
    data = make_tar([("a.jpg", noise(0, 800)), ("a.cls", b"1"), ("b.jpg", noise(1, 3000))])
    cut = data[: 3 * BLOCK + 2 * BLOCK + 1000]
    ours, scan = samples_of(cut)
    assert [(s.key, s.reason) for s in ours] == [("a", Reason.KEPT), ("b", Reason.TRUNCATED)]
    assert ours[1].detail == "the shard ends at byte 3,560, inside b.jpg (3,000 bytes from 3,072)"
    assert ours[1].end == len(cut)
    assert describe_damage(scan) == ("cut short: the entry at byte 2,560 is not whole",)


def test_a_sample_whose_second_member_is_cut_is_truncated():
    data = make_tar([("a.cls", b"1"), ("a.jpg", noise(1, 3000))])
    ours, _ = samples_of(data[:3000])
    assert [(s.key, s.reason) for s in ours] == [("a", Reason.TRUNCATED)]
    assert "inside a.jpg" in ours[0].detail


@pytest.mark.parametrize(("cut", "damage"), [(2560, "no end-of-archive mark"), (2700, "cut short")])
def test_a_shard_that_ends_between_samples(cut, damage):
    data = make_tar([("a.jpg", noise(0, 800)), ("a.cls", b"1"), ("b.jpg", noise(1, 3000))])
    ours, scan = samples_of(data[:cut])
    assert [(s.key, s.reason) for s in ours] == [("a", Reason.KEPT)]
    assert len(describe_damage(scan)) == 1
    assert describe_damage(scan)[0].startswith(damage)


def test_a_damaged_header_is_a_row_of_its_own():
    files = [(f"{i}.{kind}", noise(i, 600)) for i in range(4) for kind in ("jpg", "cls")]
    data = bytearray(make_tar(files))
    data[4 * 1536] ^= 255  # the header of 2.jpg
    ours, scan = samples_of(bytes(data))
    assert shape(ours) == [
        ("0", ["jpg", "cls"]),
        ("1", ["jpg", "cls"]),
        ("train-0000.tar@6144", []),
        ("2", ["cls"]),
        ("3", ["jpg", "cls"]),
    ]
    assert [s.reason for s in ours].index(Reason.DAMAGED_TAR) == 2
    assert ours[2].detail == "1,536 bytes from 6,144 hold no valid tar header"
    assert describe_damage(scan) == ("no valid tar header from byte 6,144 to 7,680",)


@pytest.mark.parametrize("victim", range(6))
def test_damage_anywhere_loses_no_byte(victim):
    files = [(f"{i}.{kind}", noise(i, 600)) for i in range(3) for kind in ("jpg", "cls")]
    data = bytearray(make_tar(files))
    data[victim * 1536 + 10] ^= 255
    ours, _ = samples_of(bytes(data))
    assert sum(s.reason == Reason.DAMAGED_TAR for s in ours) == 1
    # The rows lie one behind the other and leave nothing out.
    assert ours[0].start == 0 and ours[-1].end == 6 * 1536
    assert all(a.end == b.start for a, b in itertools.pairwise(ours))


keys = st.sampled_from(["a", "b", "dir/c", "ü", "x" * 120, "y/" * 140 + "z"])
extensions = st.sampled_from(["jpg", "cls", "json", "seg.png"])
members = st.tuples(keys, extensions, st.sampled_from([b"", b"1", b"x" * 512, b"y" * 1500]))


@given(
    entries=st.lists(members, min_size=1, max_size=12),
    layout=st.sampled_from(FORMATS[1:]),
    data=st.data(),
)
def test_any_choice_of_ranges_is_a_tar_of_those_samples(entries, layout, data):
    files = [(f"{key}.{extension}", content) for key, extension, content in entries]
    archive = make_tar(files, layout)
    samples, _ = samples_of(archive)
    assert sum(len(sample.members) for sample in samples) == len(files)
    assert all(a.end <= b.start for a, b in itertools.pairwise(samples))
    assert all(s.start % BLOCK == 0 and s.end % BLOCK == 0 for s in samples)
    chosen = data.draw(st.sets(st.integers(0, len(samples) - 1)))
    ranges = [archive[samples[i].start : samples[i].end] for i in sorted(chosen)]
    numbers = iter(range(len(files)))
    positions = [[next(numbers) for _ in sample.members] for sample in samples]
    with_times = io.BytesIO()
    with tarfile.open(fileobj=with_times, mode="w", format=layout) as tar:
        for i in sorted(chosen):
            for position in positions[i]:
                info = tarfile.TarInfo(files[position][0])
                info.size, info.mtime = len(files[position][1]), 1_600_000_000 + position
                info.uname = "someone"
                tar.addfile(info, io.BytesIO(files[position][1]))
    assert same_members(b"".join(ranges) + END_OF_ARCHIVE, with_times.getvalue())


def test_stat_shard(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"12345")
    ref = stat_shard(path)
    assert (ref.path, ref.size_bytes, ref.mtime_ns) == (path, 5, path.stat().st_mtime_ns)
    with pytest.raises(ShardError, match=r"gone\.tar: No such file"):
        stat_shard(tmp_path / "gone.tar")


@given(
    entries=st.lists(members | st.just(("__meta__", "txt", b"")), max_size=20),
    n_entries=st.integers(1, 5),
    victim=st.none() | st.integers(0, 19),
)
def test_the_size_of_the_pieces_changes_nothing(entries, n_entries, victim):
    data = bytearray(make_tar([(f"{key}.{kind}", content) for key, kind, content in entries]))
    if victim is not None and victim < len(entries):
        data[victim * 1024 % len(data)] ^= 255
    whole, pieces = TarScan(bytes(data)), TarScan(bytes(data))
    want = list(scan_samples(whole, SHARD))
    blocks = list(scan_blocks(pieces, SHARD, entries=n_entries))
    assert [block.sample(row) for block in blocks for row in range(len(block))] == want
    hashes = [value for block in blocks for value in block.key_hash_R.tolist()]
    assert hashes == [name_hash(sample.key.encode()) for sample in want]
    assert describe_damage(pieces) == describe_damage(whole)
    assert (pieces.others, pieces.ended) == (whole.others, whole.ended)


def test_keys_that_are_no_utf8_stay_apart():
    tar = bytearray(make_tar([("a1.jpg", b""), ("b1.jpg", b"")], tarfile.USTAR_FORMAT))
    for at, byte in ((0, 0xFE), (512, 0xFF)):
        tar[at] = byte
        tar[at : at + 512] = sealed(bytes(tar[at : at + 512]))
    (block,) = scan_blocks(TarScan(bytes(tar)), SHARD)
    assert block.key_R.to_pylist() == ["\\xfe1", "\\xff1"]
    assert block.key_hash_R.tolist() == [name_hash(b"\\xfe1"), name_hash(b"\\xff1")]
