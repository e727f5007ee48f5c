"""What tar_scan makes of odd, damaged and cut headers, against Python's own `tarfile`."""

import io
import itertools
import random
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, tar_file_iterator

from shardsieve_kernels.tar_scan import BLOCK, KEYLESS, REGULAR, TarEntries, tar_scan
from shardsieve_kernels.testing.tar_scan import FORMATS, sealed

END_OF_ARCHIVE = bytes(1024)
EACH_FORMAT = pytest.mark.parametrize("layout", FORMATS)


def make_tar(files, layout="ustar"):
    """Writes (name, content) pairs, or ready TarInfo objects, with `tarfile`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[layout]) as tar:
        for entry in files:
            info, content = entry if isinstance(entry, tuple) else (entry, b"")
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def scanned(data):
    """The entries of a tar by the reference; "cpu" must find the same."""
    want, got = tar_scan(data, backend="reference"), tar_scan(data, backend="cpu")
    for field in TarEntries._fields:
        assert np.array_equal(getattr(got, field), getattr(want, field)), field
    return got


def names_of(entries):
    edges, names = entries.name_at_E1.tolist(), entries.names_Q.tobytes()
    return [names[a:b].decode("utf-8", "backslashreplace") for a, b in itertools.pairwise(edges)]


def found(data):
    """The regular files as (name, start, data, size), and what else was seen."""
    entries = scanned(data)
    columns = (entries.start_E.tolist(), entries.data_E.tolist(), entries.size_E.tolist())
    is_file = np.isin(entries.kind_E, REGULAR).tolist()
    rows = zip(names_of(entries), *columns, strict=True)
    members = [row for row, regular in zip(rows, is_file, strict=True) if regular]
    scan = SimpleNamespace(
        others=is_file.count(False),
        gaps=[tuple(gap) for gap in entries.gaps_G2.tolist()],
        cut_at=None if entries.cut_at < 0 else entries.cut_at,
        ended=entries.ended,
    )
    return members, scan


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isreg()]


def header(name, size, **changes):
    """A ustar header whose fields (offset=bytes) are replaced before the checksum is taken."""
    info = tarfile.TarInfo(name)
    info.size = size
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for offset, value in changes.items():
        start = int(offset.removeprefix("at"))
        raw[start : start + len(value)] = value
    return sealed(raw)


def padded(content):
    return content + bytes(-len(content) % BLOCK)


def noise(seed, size):
    return random.Random(seed).randbytes(size)


NAMES = {
    "short": "00017.jpg",
    "folder": "train/n01440764/00017.jpg",
    "exactly 100": "x" * 96 + ".jpg",
    "over 100, with a prefix": "folder/" * 12 + "y" * 90 + ".jpg",
    "over 255": "deep/" * 30 + "z" * 150 + ".jpg",
    "not ASCII": "Käse/größe_猫.jpg",
    "long and not ASCII": "猫/" * 60 + "größe.jpg",
    "spaces and newline": "a b/c\nd.jpg",
}


@EACH_FORMAT
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_agree_with_tarfile(name, layout):
    try:
        data = make_tar([("before.cls", b"1"), (name, b"jpeg" * 300), ("after.cls", b"")], layout)
    except ValueError:
        assert layout == "ustar" and len(name.encode()) > 100
        return
    members, scan = found(data)
    assert members == by_tarfile(data)
    assert [member[0] for member in members] == ["before.cls", name, "after.cls"]
    assert scan.ended and not scan.gaps and scan.cut_at is None and scan.others == 0


@EACH_FORMAT
def test_entries_that_are_no_files_are_counted(layout):
    data = make_tar(
        [
            entry("folder", tarfile.DIRTYPE),
            ("folder/a.jpg", b"x" * 700),
            entry("soft", tarfile.SYMTYPE, linkname="folder/a.jpg"),
            entry("hard", tarfile.LNKTYPE, linkname="folder/a.jpg"),
            entry("long-soft", tarfile.SYMTYPE, linkname="t" * (90 if layout == "ustar" else 300)),
            entry("pipe", tarfile.FIFOTYPE),
            entry("char", tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("block", tarfile.BLKTYPE),
            (entry("contiguous.jpg", tarfile.CONTTYPE, size=3), b"abc"),
            (entry("old.jpg", tarfile.AREGTYPE, size=3), b"abc"),
        ],
        layout,
    )
    members, scan = found(data)
    assert members == by_tarfile(data)
    assert len(members) == 3
    assert scan.others == 7


def test_a_link_with_a_size_has_no_content():
    # Some writers put the target's size there.
    data = header("hard.jpg", 5000, at156=tarfile.LNKTYPE) + header("a.cls", 1) + padded(b"3")
    data += END_OF_ARCHIVE
    members, scan = found(data)
    assert members == by_tarfile(data)
    assert [member[0] for member in members] == ["a.cls"]
    assert scan.others == 1 and not scan.gaps


def test_global_pax_headers_are_passed_over():
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c" * 900}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a.cls"))
    members, scan = found(out.getvalue())
    assert members == by_tarfile(out.getvalue())
    assert scan.others == 1


def test_name_with_a_prefix_field():
    raw = header("00017.jpg", 3, at345=b"some/folder") + padded(b"abc") + END_OF_ARCHIVE
    assert [m[0] for m in found(raw)[0]] == ["some/folder/00017.jpg"]
    assert found(raw)[0] == by_tarfile(raw)


def test_gnu_headers_keep_times_where_ustar_has_the_prefix():
    raw = header("00017.jpg", 0, at257=b"ustar  \0", at345=b"14724523456\0") + END_OF_ARCHIVE
    assert [m[0] for m in found(raw)[0]] == ["00017.jpg"]


def test_v7_headers_without_magic():
    raw = header("a.jpg", 3, at156=b"\0", at257=bytes(255)) + padded(b"abc")
    raw += header("a.cls", 1, at156=b"\0", at257=bytes(255)) + padded(b"1") + END_OF_ARCHIVE
    assert found(raw)[0] == by_tarfile(raw)
    damaged = b"!" + raw[1:]
    members, scan = found(damaged)
    assert [m[0] for m in members] == ["a.cls"]
    assert scan.gaps == [(0, 1024)]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
def test_base_256_sizes(size):
    field = b"\x80" + size.to_bytes(11, "big")
    raw = header("a.jpg", 0, at124=field) + padded(bytes(size)) + header("b.jpg", 0)
    raw += END_OF_ARCHIVE
    members, scan = found(raw)
    assert members == by_tarfile(raw)
    assert [member[3] for member in members] == [size, 0] and scan.ended


@pytest.mark.parametrize(
    "field",
    [b"00000000003 ", b"         3 \0", b"3\0" + b"9" * 10, b"00000000003\0", b"000000000003"],
)
def test_octal_sizes_of_odd_writers(field):
    raw = header("a.jpg", 0, at124=field) + padded(b"abc") + header("b.jpg", 0) + END_OF_ARCHIVE
    assert found(raw)[0] == by_tarfile(raw)
    assert found(raw)[0][0][3] == 3


@pytest.mark.parametrize("field", [b"-0000007777\0", b"not a number", b"\xff" * 12, b"\x80" * 12])
def test_senseless_sizes_end(field):
    raw = header("a.jpg", 0, at124=field) + header("b.jpg", 0) + END_OF_ARCHIVE
    (first, *_), scan = found(raw)
    assert first[0] == "a.jpg"
    assert 0 <= first[3] < 2**63
    assert scan.ended or scan.cut_at == 0


def pax_entry(records, name, size_field, content):
    body = b"".join(records)
    extended = header("PaxHeader", len(body), at156=b"x") + padded(body)
    return extended + header(name, size_field) + padded(content)


def test_pax_size_wins_over_the_header():
    raw = pax_entry([b"12 size=700\n"], "a.jpg", 0, noise(1, 700))
    raw += header("b.jpg", 0) + END_OF_ARCHIVE
    assert found(raw)[0] == by_tarfile(raw)
    assert found(raw)[0][0] == ("a.jpg", 0, 1536, 700)


@pytest.mark.parametrize(
    "record",
    [
        b"12 size=abc\n",
        b"12 size=-99\n",
        b"9 size=\n",
        b"11 size=\xc2\xb2\n",
        b"9" * 5000 + b" size=3\n",
        b"no record at all",
        b"3 a",
        b" ",
        b"0 ",
    ],
)
def test_damaged_pax_records_change_nothing(record):
    raw = pax_entry([record], "a.jpg", 3, b"abc") + header("b.jpg", 0) + END_OF_ARCHIVE
    members, scan = found(raw)
    assert [(m[0], m[3]) for m in members] == [("a.jpg", 3), ("b.jpg", 0)]
    assert scan.ended and not scan.gaps


def test_signed_checksums():
    raw = bytearray(header("x.jpg", 3))
    raw[:100] = "größe_äöü.jpg".encode().ljust(100, b"\0")
    signed = sealed(raw, signed=True)
    assert signed != sealed(raw)
    data = signed + padded(b"abc") + END_OF_ARCHIVE
    assert found(data)[0] == by_tarfile(data) == [("größe_äöü.jpg", 0, 512, 3)]


def test_names_that_are_no_utf8_stay_apart():
    raw = header("a.jpg", 0, at0=b"\xff1.jpg\0") + header("a.jpg", 0, at0=b"\xfe1.jpg\0")
    assert [m[0] for m in found(raw + END_OF_ARCHIVE)[0]] == ["\\xff1.jpg", "\\xfe1.jpg"]


def test_an_archive_without_members():
    members, scan = found(make_tar([]))
    assert members == [] and scan.ended


letters = st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))
names = st.text(letters, min_size=1, max_size=12) | st.text(letters, min_size=90, max_size=280)
names = names.filter(lambda name: not name.startswith("/") and not name.endswith("/"))
files = st.tuples(names, st.binary(max_size=20) | st.sampled_from([b"", b"y" * 512, b"z" * 1300]))


@EACH_FORMAT
@given(entries=st.lists(files, max_size=6))
@example(entries=[("/".join(["long"] * 40), b"1"), ("plain", b"")])
def test_random_archives_are_found_as_tarfile_finds_them(layout, entries):
    try:
        data = make_tar(entries, layout)
    except ValueError:  # ustar has no room for some names
        assume(False)
    members, scan = found(data)
    assert members == by_tarfile(data)
    assert scan.ended and not scan.gaps and scan.cut_at is None


SMALL = [
    ("a.jpg", noise(1, 900)),
    ("a.cls", b"1"),
    ("long/" * 30 + "b.jpg", noise(2, 512)),
    ("long/" * 30 + "b.cls", b""),
    ("ü.jpg", noise(3, 1)),
    ("ü.cls", b"2"),
]


def check_cut(data, whole, cut):
    seen, scan = found(data[:cut])
    complete = [member for member in seen if member[2] + member[3] <= cut]
    assert complete == [member for member in whole if member[2] + member[3] <= cut]
    assert len(seen) <= len(complete) + 1
    marker = whole[-1][2] + BLOCK
    entries = [(start, begin + size) for _, start, begin, size in whole]
    inside = [start for start, end in [*entries, (marker, marker + BLOCK)] if start < cut < end]
    # A cut inside padding or between members leaves only the marker missing.
    assert scan.cut_at == (inside[0] if inside else None)
    assert not scan.gaps
    assert scan.ended == (cut >= marker + BLOCK)


@pytest.mark.parametrize("layout", ["gnu", "pax"])
def test_cut_at_every_block(layout):
    data = make_tar(SMALL, layout)
    whole = by_tarfile(data)
    for cut in range(0, len(data) + 1, BLOCK):
        check_cut(data, whole, cut)


@pytest.mark.parametrize("layout", ["gnu", "pax"])
@given(seed=st.integers(0, 10**9))
def test_cut_at_any_byte(layout, seed):
    data = make_tar(SMALL, layout)
    whole = by_tarfile(data)
    check_cut(data, whole, seed % (whole[-1][2] + 2000))


# Changes in the checksum field itself may leave its value as it was.
outside_the_checksum = st.integers(0, 147) | st.integers(156, 511)


@given(
    victim=st.integers(0, 5),
    damage=st.dictionaries(outside_the_checksum, st.integers(1, 255), min_size=1, max_size=1),
)
def test_a_damaged_header_ends_nothing(victim, damage):
    parts = [(f"{i // 2}.{'jpg' if i % 2 == 0 else 'cls'}", noise(i, 700 * i)) for i in range(6)]
    data = make_tar(parts)
    whole = by_tarfile(data)
    start = whole[victim][1]
    corrupt = bytearray(data)
    for offset, change in damage.items():
        corrupt[start + offset] ^= change
    members, scan = found(bytes(corrupt))
    assert members == whole[:victim] + whole[victim + 1 :]
    end = start + BLOCK + len(padded(parts[victim][1]))
    assert scan.gaps == [(start, end)]
    assert scan.ended


@given(seed=st.integers(0, 10**9), layout=st.sampled_from(["gnu", "pax"]))
def test_random_damage_never_raises_and_spares_what_is_before_it(seed, layout):
    data = make_tar(SMALL, layout)
    rng = random.Random(seed)
    first = rng.randrange(len(data))
    corrupt = bytearray(data)
    for _ in range(rng.choice([1, 5, 200])):
        corrupt[rng.randrange(first, len(data))] = rng.randrange(256)
    members, scan = found(bytes(corrupt))
    safe = [member for member in by_tarfile(data) if member[2] + member[3] <= first]
    assert members[: len(safe)] == safe
    assert all(0 <= start < end <= len(data) for start, end in scan.gaps)


def test_a_header_overwritten_with_zeros_ends_nothing():
    data = bytearray(make_tar([(f"{i}.jpg", noise(i, 1000)) for i in range(5)]))
    whole = by_tarfile(bytes(data))
    data[whole[2][1] : whole[2][1] + BLOCK] = bytes(BLOCK)
    members, scan = found(bytes(data))
    assert members == whole[:2] + whole[3:]
    assert scan.gaps == [(whole[2][1], whole[3][1])] and scan.ended


def test_zeros_inside_a_damaged_member_are_no_end():
    content = noise(1, 1024) + bytes(4096) + noise(2, 512)
    data = make_tar([("0.npy", content), ("1.npy", content), ("2.npy", content)])
    whole = by_tarfile(data)
    corrupt = bytearray(data)
    corrupt[whole[1][1]] ^= 1
    members, scan = found(bytes(corrupt))
    assert members == [whole[0], whole[2]]
    assert scan.gaps == [(whole[1][1], whole[2][1])] and scan.ended


def test_concatenated_archives_are_read_to_the_end():
    first, second = make_tar([("a.jpg", b"1")]), make_tar([("b.jpg", b"2")])
    members, scan = found(first + second)
    assert [m[0] for m in members] == ["a.jpg", "b.jpg"]
    assert scan.gaps == [(1024, len(first))] and scan.ended


def test_rubbish_after_the_end_is_no_damage():
    members, scan = found(make_tar([("a.jpg", b"1")]) + noise(0, 5000))
    assert [m[0] for m in members] == ["a.jpg"]
    assert scan.ended and not scan.gaps


SPLIT = [
    "a.jpg",
    "a.JPG",
    "a.b.jpg",
    "a.Seg.PNG",
    "dir/a.jpg",
    "dir.d/a.jpg",
    "./a.jpg",
    "../x/a.jpg",
    "v1.0/train.d/a.b.c",
    "noext",
    "dir.d/noext",
    "dir/noext",
    "a.",
    "a..jpg",
    ".hidden",
    "..jpg",
    "__meta__",
    "__meta__.json",
    "__a__/b.jpg",
    "x/__meta__",
    "x/__a__/b.jpg",
    "__a.b__",
    "__.jpg",
    "__a/b.jpg",
    "a b.jpg",
    "ä.ÄPG",
    "",
]


def by_webdataset(name):
    """The key and extension that a WebDataset pipeline would see, None when it sees nothing."""
    if name and not list(tar_file_iterator(io.BytesIO(make_tar([(name, b"1")])))):
        return None
    key, extension = base_plus_ext(name)
    return None if key is None else (key, extension.lower())


def split_name(name):
    entries = scanned(make_tar([(name, b"1")]) if name else header("a.jpg", 0, at0=bytes(100)))
    size = int(entries.key_size_E[0])
    raw = entries.names_Q.tobytes()
    return None if size == KEYLESS else (raw[:size].decode(), raw[size + 1 :].decode().lower())


@pytest.mark.parametrize("name", SPLIT)
def test_keys_agree_with_webdataset(name):
    assert split_name(name) == by_webdataset(name)


@given(name=st.text(st.sampled_from("aB_./ü-0"), min_size=1, max_size=14))
def test_keys_agree_with_webdataset_on_random_names(name):
    assume(not name.endswith("/"))
    # Hidden files in folders belong to no sample here; WebDataset makes `dir/` their key.
    assume(not name.rpartition("/")[2].startswith("."))
    assert split_name(name) == by_webdataset(name)


def test_hidden_files_in_folders_belong_to_no_sample():
    assert split_name("train/._00017.jpg") is None
