"""A corpus with every kind of damage: the run finishes, and the list of what is out is exact."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import COLOURS, add_member, jpeg

import shardsieve
from shardsieve.config import IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.errors import DataError, ShardError
from shardsieve.progress import Silent
from shardsieve.stages.index import index

RNG = np.random.default_rng(0)
PHOTO = jpeg(COLOURS[0], RNG)


def packed(kind, image, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode="RGB", size=(40, 40)):
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def png_that_claims(width, height):
    """A few bytes that say they are a picture of any size."""

    def chunk(kind, body):
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return packed("JPEG", picture(), exif=exif)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


# Odd, but images all the same: they are judged like any other.
SOUND = {
    "cmyk": packed("JPEG", picture("CMYK")),
    "sixteen-bit": packed(
        "PNG", Image.fromarray(RNG.integers(0, 65536, (40, 40), dtype=np.uint16))
    ),
    "exif-rotated": rotated(),
    "animated-webp": packed("WEBP", picture(), save_all=True, append_images=[picture(), picture()]),
    "palette-with-alpha": packed("PNG", picture("RGBA").quantize(16)),
    "grey": packed("JPEG", picture("L")),
    "progressive": packed("JPEG", picture(), progressive=True),
    "wrong-extension": packed("PNG", picture()),
    "rubbish-behind-the-end": PHOTO + bytes(1000),
}
UNDECODABLE = {
    "zero-bytes": b"",
    "half-a-jpeg": PHOTO[: len(PHOTO) // 2],
    "only-the-start-marker": PHOTO[:2],
    "broken-header": flipped(PHOTO, 1),
    "html": b"<html>404</html>",
    "zeros": bytes(2000),
    "bomb": png_that_claims(60_000, 60_000),
    "hundred-megapixels": png_that_claims(12_500, 8_000),
    "thin-strip": packed("PNG", picture(size=(4001, 1))),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n",
    "cut-png": packed("PNG", picture())[:-200],
}
NAMES = {
    "../outside": "unsafe_name",
    "folder/../../outside": "unsafe_name",
    "/absolute": "unsafe_name",
    "plain/folder/inside": "fine",
    "dots..inside": "no_label",
    "k\udcff\udcfe": "fine",
}


def add_special(tar, name, kind, linkname=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    tar.addfile(member)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two shards, and what must become of each odd sample."""
    folder = tmp_path_factory.mktemp("corpus")
    expected = dict.fromkeys(SOUND, "fine") | dict.fromkeys(UNDECODABLE, "undecodable")
    expected |= {
        "hard-link": "no_image", "sym-link": "no_image", "label-of-words": "label_outside",
        "no-label": "no_label", "no-picture": "no_image", "outside": "label_outside",
    }  # fmt: skip
    with tarfile.open(folder / "a-0.tar", "w", encoding="utf-8", errors="surrogateescape") as tar:
        for i in range(120):
            add_member(tar, f"good{i:03d}.jpg", jpeg(COLOURS[i % 2], RNG))
            add_member(tar, f"good{i:03d}.cls", b"%d" % (i % 2))
        for key, content in {**SOUND, **UNDECODABLE}.items():
            add_member(tar, f"{key}.jpg", content)
            add_member(tar, f"{key}.cls", b"1")
        for key, what in NAMES.items():
            add_member(tar, f"{key}.jpg", PHOTO)
            add_member(tar, f"{key}.cls", b"0")
            if key == "dots..inside":
                # WebDataset's key ends at the first dot: the extensions are .inside.jpg and so on.
                expected["dots"] = "no_label"
            else:
                expected[
                    key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                ] = what
        add_special(tar, "hard-link.jpg", tarfile.LNKTYPE, "good000.jpg")
        add_member(tar, "hard-link.cls", b"1")
        add_special(tar, "sym-link.jpg", tarfile.SYMTYPE, "/etc/passwd")
        add_member(tar, "sym-link.cls", b"1")
        add_special(tar, "pipe.jpg", tarfile.FIFOTYPE)
        add_special(tar, "folder", tarfile.DIRTYPE)
        add_member(tar, "label-of-words.jpg", PHOTO)
        add_member(tar, "label-of-words.cls", b"\xff\xfe\x00")
        add_member(tar, "no-label.jpg", PHOTO)
        add_member(tar, "no-picture.cls", b"1")
        add_member(tar, "outside.jpg", PHOTO)
        add_member(tar, "outside.cls", b"77")
        add_member(tar, "good000.jpg", PHOTO)
        add_member(tar, "good000.cls", b"0")
        add_member(tar, "without-extension", b"notes")
    _write_damaged(folder / "a-1.tar", expected)
    classes = folder / "classes.txt"
    classes.write_text("red\ngreen\n")
    return folder, classes, expected


def _write_damaged(path, expected):
    """A sparse member, an overwritten header, and an end in the middle of a picture."""
    with tarfile.open(path, "w") as tar:
        for key in ("before", "sparse", "victim", "after", "last"):
            add_member(tar, f"{key}.jpg", PHOTO)
            add_member(tar, f"{key}.cls", b"0")
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset, member.offset_data) for member in tar}
    content = bytearray(path.read_bytes())
    start = places["sparse.jpg"][0]
    header = content[start : start + 512]
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    victim = places["victim.jpg"][0]
    content[victim : victim + 512] = RNG.integers(0, 256, 512, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(content[: places["last.jpg"][1] + 300]))
    expected |= {
        "sparse": "no_image", "victim": "no_image", "last": "truncated",
        f"{path.name}@{victim}": "damaged_tar", "before": "fine", "after": "fine",
    }  # fmt: skip


def test_the_list_is_exact_and_nothing_is_lost(corpus, settings, tmp_path):
    folder, classes, expected = corpus
    run = shardsieve.clean(
        [str(folder / "a-0.tar"), str(folder / "a-1.tar")],
        tmp_path / "RUN",
        settings(index__classes=str(classes), select__recipe="turn"),
    )
    rows = run.scores.select(["key", "reason", "detail"]).to_pylist()
    found = {row["key"]: row["reason"] for row in rows if not row["key"].startswith("good")}
    judged = ("kept", "high_loss")
    missing = expected.keys() - found.keys()
    assert not missing
    wrong = {
        key: (found[key], what)
        for key, what in expected.items()
        if (found[key] in judged) != (what == "fine") or (what != "fine" and found[key] != what)
    }
    assert not wrong
    assert sum(row["key"].startswith("good") for row in rows) == 121
    assert all(row["reason"] in judged for row in rows if row["key"].startswith("good"))
    assert all(row["detail"] for row in rows if row["reason"] not in judged)
    counts = run.manifest.counts
    assert counts.reconciles
    assert counts.samples_in == len(rows)
    assert sum(counts.unreadable.values()) == sum(what != "fine" for what in expected.values())
    out = []
    for path in (run.path / "clean").glob("*.tar"):
        with tarfile.open(path) as tar:
            out += tar.getnames()
    assert out and not any(name.startswith(("/", "..")) or "/../" in name for name in out)


def test_too_much_of_it_stops_the_run_with_examples(corpus, settings, tmp_path):
    folder, classes, _ = corpus
    with pytest.raises(
        DataError, match=r"index.max_bad_fraction = 0.01.*The first: .*\.\./outside"
    ):
        shardsieve.clean(
            [str(folder / "a-0.tar")],
            tmp_path / "RUN",
            settings(index__classes=str(classes), index__max_bad_fraction=0.01),
        )


@given(seed=st.integers(0, 2**32 - 1), n_bytes=st.integers(1, 40), cut=st.floats(0.02, 1))
@settings(max_examples=25)
def test_a_fuzzed_tar_is_indexed_or_refused(corpus, tmp_path_factory, seed, n_bytes, cut):
    folder, classes, _ = corpus
    rng = np.random.default_rng(seed)
    content = bytearray((folder / "a-1.tar").read_bytes())
    for at in rng.integers(0, len(content), n_bytes).tolist():
        content[at] = rng.integers(256)
    work = tmp_path_factory.mktemp("fuzz")
    path = work / "x.tar"
    path.write_bytes(bytes(content[: max(1, int(len(content) * cut))]))
    config = IndexConfig(classes=classes, max_bad_fraction=1.0)
    try:
        result = index([path], config, out=work, progress=Silent())
    except (ShardError, DataError) as error:
        assert str(path) in str(error) or "hold no sample" in str(error)
        return
    table = SampleIndex.open(work).table
    assert result.counts["samples"] == table.num_rows > 0
    end_N = np.asarray(table.column("offset")) + np.asarray(table.column("size"))
    assert (end_N <= path.stat().st_size).all()
    image_end_N = np.asarray(table.column("image_offset")) + np.asarray(table.column("image_size"))
    kept_N = np.asarray(table.column("reason")) == 0
    assert (image_end_N[kept_N] <= path.stat().st_size).all()
