import io
import itertools
import mmap
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardsieve_kernels import BackendUnavailable
from shardsieve_kernels.tar_scan import KEYLESS, REGULAR, TarEntries, name_hash, tar_scan
from shardsieve_kernels.testing import TAR_CASES, tar_inputs
from shardsieve_kernels.testing.tar_scan import FORMATS, make_hostile, make_tar, sealed

by_name = {"ids": lambda case: case.name}
EACH_FORMAT = pytest.mark.parametrize("layout", FORMATS)
MARKER = bytes(1024)


def assert_equal(got, want):
    """Requires equal bits in every field."""
    for field in TarEntries._fields:
        a, b = getattr(got, field), getattr(want, field)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape, field
            assert np.array_equal(a, b), (field, a, b)
        else:
            assert type(a) is type(b) and a == b, (field, a, b)


def scanned(data, **options):
    """What the reference finds; "cpu" must find the same."""
    want = tar_scan(data, backend="reference", **options)
    assert_equal(tar_scan(data, backend="cpu", **options), want)
    return want


def names_of(found):
    edges, names = found.name_at_E1.tolist(), found.names_Q.tobytes()
    return [names[a:b] for a, b in itertools.pairwise(edges)]


def files_of(found):
    regular = np.isin(found.kind_E, REGULAR)
    places = (found.start_E, found.data_E, found.size_E)
    rows = zip(names_of(found), *(values.tolist() for values in places), strict=True)
    return [row for row, is_file in zip(rows, regular, strict=True) if is_file]


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name.encode(), m.offset, m.offset_data, m.size) for m in tar if m.isreg()]


@pytest.mark.parametrize("case", TAR_CASES, **by_name)
def test_cases_are_found_as_tarfile_finds_them(case):
    data = tar_inputs(case)
    found = scanned(data)
    assert files_of(found) == by_tarfile(data)
    assert len(found.kind_E) == case.n_samples * len(case.extensions)
    assert found.ended and found.cut_at == -1 and found.resume_at == -1
    assert len(found.gaps_G2) == 0
    assert (found.end_E[:-1] == found.start_E[1:]).all()
    assert (found.data_E == found.header_E + 512).all()
    has_key = not case.folder.startswith("__")
    assert ((found.key_size_E != KEYLESS) == has_key).all()


def test_hashes_are_of_name_key_and_lower_case_extension():
    found = scanned(make_tar([("d.x/a.Seg.PNG", b""), ("readme", b""), ("d/.hidden", b"")]))
    assert found.key_size_E.tolist() == [5, KEYLESS, KEYLESS]
    names = [b"d.x/a.Seg.PNG", b"readme", b"d/.hidden"]
    assert found.name_hash_E.tolist() == [name_hash(name) for name in names]
    assert found.key_hash_E.tolist() == [name_hash(b"d.x/a"), 0, 0]
    assert found.extension_hash_E.tolist() == [name_hash(b"seg.png"), 0, 0]
    # The test vectors of the authors of FNV.
    assert name_hash(b"") == 0xCBF29CE484222325
    assert name_hash(b"foobar") == 0x85944171F73967E8


def test_all_kinds_of_entries_are_listed():
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.AREGTYPE]
    entries = []
    for kind in kinds:
        info = tarfile.TarInfo("entry")
        info.type = kind
        entries.append((info, b""))
    found = scanned(make_tar([*entries, ("a.jpg", b"x")]))
    assert bytes(found.kind_E) == b"5216\x000"
    assert found.ended


letters = st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))
names = st.text(letters, min_size=1, max_size=12) | st.text(letters, min_size=90, max_size=280)
names = names.filter(lambda name: not name.startswith("/") and not name.endswith("/"))
files = st.tuples(names, st.binary(max_size=20) | st.sampled_from([b"", b"y" * 512, b"z" * 1300]))
archives = st.tuples(st.lists(files, max_size=6), st.sampled_from(list(FORMATS)))


def archive(entries, layout):
    try:
        return make_tar(entries, layout)
    except ValueError:  # ustar has no room for some names
        assume(False)


@given(archives)
def test_random_archives(drawn):
    data = archive(*drawn)
    found = scanned(data)
    assert files_of(found) == by_tarfile(data)
    assert found.ended and found.cut_at == -1 and not len(found.gaps_G2)


@given(archives, st.data())
def test_damaged_and_cut_archives(drawn, draws):
    data = bytearray(archive(*drawn))
    places = st.integers(0, min(len(data), 6000) - 1)
    for place, value in draws.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        data[place] = value
    end = draws.draw(st.integers(0, len(data)))
    found = scanned(bytes(data[:end]))
    assert all(0 <= low < high <= end for low, high in found.gaps_G2.tolist())
    assert (found.header_E + 512 <= end).all() and (found.size_E >= 0).all()


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=300)
def test_hostile_bytes(seed, n_blocks):
    rng = np.random.default_rng(seed)
    data = make_hostile(rng, n_blocks)
    found = scanned(data)
    assert (found.end_E >= found.data_E).all()
    # What lies around the tar in memory changes nothing.
    padded = np.frombuffer(rng.bytes(700) + data + make_hostile(rng, 2), np.uint8)
    assert_equal(tar_scan(padded[700 : 700 + len(data)], backend="cpu"), found)


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_pieces_add_up_to_the_whole(seed, max_entries):
    rng = np.random.default_rng(seed)
    data = make_hostile(rng, 20)
    whole, pieces, start = scanned(data), [], 0
    while start >= 0:
        piece = scanned(data, start=start, max_entries=max_entries)
        assert len(piece.kind_E) <= max_entries and len(piece.gaps_G2) <= max_entries
        assert piece.resume_at == -1 or piece.resume_at > start
        pieces.append(piece)
        start = piece.resume_at
    for field in TarEntries._fields:
        if field not in ("name_at_E1", "cut_at", "ended", "resume_at"):
            joined = np.concatenate([getattr(piece, field) for piece in pieces])
            assert np.array_equal(joined, getattr(whole, field)), field
    assert [name for piece in pieces for name in names_of(piece)] == names_of(whole)
    assert max(piece.cut_at for piece in pieces) == whole.cut_at
    assert pieces[-1].ended == whole.ended


def test_it_can_begin_at_any_entry():
    data = tar_inputs(TAR_CASES[5])
    whole = scanned(data)
    half = scanned(data, start=int(whole.start_E[75]))
    assert files_of(half) == files_of(whole)[75:]


def test_signed_checksums_are_tolerated():
    raw = bytearray(tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT))
    raw[:100] = "größe_äöü.jpg".encode().ljust(100, b"\0")
    signed = sealed(raw, signed=True)
    assert signed != sealed(raw)
    assert names_of(scanned(signed + MARKER)) == ["größe_äöü.jpg".encode()]


@pytest.mark.parametrize("data", [b"", b"x" * 511, bytes(512), bytes(1024), b"x" * 5000])
def test_what_holds_no_entry(data):
    found = scanned(data)
    assert not len(found.kind_E)
    assert found.ended == (data in (bytes(512), bytes(1024)))


def test_out_of_bounds_would_be_noticed():
    """The code of "cpu" run as Python, where every index is checked."""
    code = """
import numpy as np
from shardsieve_kernels.tar_scan import tar_scan
from shardsieve_kernels.testing.tar_scan import make_hostile
np.seterr(over="ignore")
for seed in range(60):
    tar_scan(make_hostile(np.random.default_rng(seed), 5), backend="cpu")
print("done")
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_buffers_of_all_kinds(backend, tmp_path):
    data = tar_inputs(TAR_CASES[4])
    want = tar_scan(data, backend="reference")
    (tmp_path / "a.tar").write_bytes(data)
    with (
        (tmp_path / "a.tar").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert_equal(tar_scan(mapped, backend=backend), want)
    writable = bytearray(data)
    strided = np.repeat(np.frombuffer(data, np.uint8), 2)[::2]
    for tar_P in (writable, memoryview(data), np.array(writable), strided):
        assert_equal(tar_scan(tar_P, backend=backend), want)
    assert writable == data


def test_threads_scan_side_by_side():
    tars = [tar_inputs(TAR_CASES[2], seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: tar_scan(data, backend="cpu"), tars))
    for got, data in zip(found, tars, strict=True):
        assert_equal(got, tar_scan(data, backend="reference"))


def test_there_is_no_gpu_version():
    with pytest.raises(BackendUnavailable, match=r"'gpu' is unavailable: tar_scan has no GPU"):
        tar_scan(b"", backend="gpu")
    with pytest.raises(BackendUnavailable, match="no backend has this name"):
        tar_scan(b"", backend="abacus")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("error", "match", "data", "options"),
    [
        (TypeError, "tar_P must have dtype uint8, found int32", np.zeros(9, np.int32), {}),
        (ValueError, r"tar_P must have 1 dimension\(s\)", np.zeros((2, 512), np.uint8), {}),
        (ValueError, "start must be at least 0", bytes(512), {"start": -1}),
        (ValueError, "start must be at most the 512 bytes", bytes(512), {"start": 513}),
        (ValueError, "max_entries must be at least 1", bytes(512), {"max_entries": 0}),
        (TypeError, "max_entries must be an integer", bytes(512), {"max_entries": 1.5}),
    ],
)
def test_refusals_are_the_same_everywhere(backend, error, match, data, options):
    with pytest.raises(error, match=match):
        tar_scan(data, backend=backend, **options)
