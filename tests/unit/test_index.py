"""The stage `index`: every sample of the shards is a row, whatever is wrong with it."""

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, parquet

from shardsieve.config import IndexConfig
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.reason import Reason
from shardsieve.errors import DataError, LabelError, ShardError
from shardsieve.progress import Silent
from shardsieve.shards import rows
from shardsieve.shards.samples import scan_samples
from shardsieve.shards.tar import TarScan
from shardsieve.stages.index import index


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def indexed(tmp_path, *shards, classes=None, **settings):
    """Indexes shards given as lists of (name, content) or as paths."""
    paths = [
        shard if not isinstance(shard, list) else write_tar(tmp_path / f"train-{n:04d}.tar", shard)
        for n, shard in enumerate(shards)
    ]
    out = tmp_path / "index"
    out.mkdir(exist_ok=True)
    settings = {"max_bad_fraction": 1.0, **settings}
    result = index(paths, IndexConfig(**settings), out=out, progress=Silent(), classes=classes)
    made = SampleIndex.open(out)
    assert made.table.schema == SCHEMA
    assert sorted(path.name for path in out.iterdir()) == [
        "parts",
        "samples.arrow",
        "shards.json",
    ]
    columns = {name: made.table.column(name).to_pylist() for name in SCHEMA.names}
    return SimpleNamespace(index=made, counts=result.counts, notes=result.notes, **columns)


def sample(key, label, image=b"jpeg"):
    return [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]


def flat(*samples):
    return [member for members in samples for member in members]


THREE = flat(sample("a", 1), sample("b", 0), sample("c", 1))


def test_rows_stand_in_the_order_of_shards_and_members(tmp_path):
    first = flat(sample("z", 0), sample("a", 1))
    second = flat(sample("m", 2), sample("b", 0))
    made = indexed(tmp_path, first, second)
    assert made.key == ["z", "a", "m", "b"]
    assert made.shard == [0, 0, 1, 1]
    assert made.label == [0, 1, 2, 0]
    assert made.index.classes == ("0", "1", "2")
    assert made.index.rows_of(0) == slice(0, 2) and made.index.rows_of(1) == slice(2, 4)
    backwards = indexed(tmp_path, tmp_path / "train-0001.tar", tmp_path / "train-0000.tar")
    assert backwards.key == ["m", "b", "z", "a"]
    assert made.counts == {
        "samples": 4,
        "shards": 2,
        "classes": 3,
        "readable": 4,
        "repeated_keys": 0,
        "other_members": 0,
    }
    assert made.notes == []


def test_offsets_lead_to_the_bytes(tmp_path):
    made = indexed(tmp_path, [("d", None), *sample("d/a", 1, b"first"), *sample("d/b", 0, b"2nd")])
    data = (tmp_path / "train-0000.tar").read_bytes()
    images = [
        data[offset : offset + size]
        for offset, size in zip(made.image_offset, made.image_size, strict=True)
    ]
    assert images == [b"first", b"2nd"]
    for key, offset, size in zip(made.key, made.offset, made.size, strict=True):
        (found,) = scan_samples(TarScan(data[offset : offset + size]), tmp_path)
        names = [member.name for member in found.members.values()]
        assert names == [f"{key}.jpg", f"{key}.cls"]
    assert made.counts["other_members"] == 1
    ref = made.index.shards[0]
    assert (ref.size_bytes, ref.n_samples) == (len(data), 2)
    assert ref.mtime_ns == (tmp_path / "train-0000.tar").stat().st_mtime_ns


LABELS = {"a": 2, "b": 0, "c": 1, "00017": 1, "17": 0}


def json_shard(labels, field="label"):
    samples = []
    for key, label in labels.items():
        samples += [(f"{key}.jpg", b"x"), (f"{key}.json", json.dumps({field: label}).encode())]
    return samples


def images_only(keys):
    return [(f"{key}.jpg", b"x") for key in keys]


def test_labels_from_json(tmp_path):
    made = indexed(tmp_path, json_shard(LABELS), labels="json:label")
    assert dict(zip(made.key, made.label, strict=True)) == LABELS
    named = {key: "xyz"[label] for key, label in LABELS.items()}
    made = indexed(tmp_path, json_shard(named), labels="json:label")
    assert made.index.classes == ("x", "y", "z")
    assert dict(zip(made.key, made.label, strict=True)) == LABELS


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_labels_from_a_table(tmp_path, suffix, named):
    path = tmp_path / f"labels.{suffix}"
    values = ["xyz"[label] if named else label for label in LABELS.values()]
    table = pa.table({"label": [*values, values[0]], "key": [*LABELS, "nobody"]})
    (csv.write_csv if suffix == "csv" else parquet.write_table)(table, path)
    made = indexed(tmp_path, images_only([*LABELS, "missing"]), labels=str(path))
    assert dict(zip(made.key[:-1], made.label[:-1], strict=True)) == LABELS
    assert made.index.classes == (tuple("xyz") if named else tuple("012"))
    assert (made.label[-1], made.reason[-1]) == (-1, Reason.NO_LABEL)
    assert made.detail[-1] == f"labels.{suffix} has no label for this key"
    assert made.counts["no_label"] == 1


def test_every_way_to_be_unusable_is_a_row_with_a_sentence(tmp_path):
    write_tar(
        tmp_path / "bad.tar",
        flat(
            sample("good", 1),
            [("noimage.txt", b"x"), ("noimage.cls", b"0")],
            [("nolabel.jpg", b"x")],
            [("blank.jpg", b"x"), ("blank.cls", b"\n")],
            sample("outside", 9),
            sample("named", "zebra"),
            sample("damaged", 1),
            sample("last", 1, bytes(range(256)) * 9),
        ),
    )
    data = bytearray((tmp_path / "bad.tar").read_bytes())
    data[data.index(b"damaged.jpg")] ^= 1
    del data[data.index(b"last.jpg") + 1000 :]
    (tmp_path / "bad.tar").write_bytes(data)
    made = indexed(tmp_path, tmp_path / "bad.tar", classes=("cat", "dog"))
    start = data.index(b"eamaged.jpg")
    rows = list(zip(made.key, made.reason, made.label, made.detail, strict=True))
    assert rows == [
        ("good", Reason.KEPT, 1, None),
        ("noimage", Reason.NO_IMAGE, 0, "no part ending in .jpg/.jpeg/.png/.webp (has: txt, cls)"),
        ("nolabel", Reason.NO_LABEL, -1, "no member .cls (has: jpg)"),
        ("blank", Reason.NO_LABEL, -1, "blank.cls is empty"),
        ("outside", Reason.LABEL_OUTSIDE, -1, "the label is 9 and there are 2 classes"),
        ("named", Reason.LABEL_OUTSIDE, -1, "the label is zebra and there are 2 classes"),
        (
            f"bad.tar@{start}",
            Reason.DAMAGED_TAR,
            -1,
            f"1,024 bytes from {start:,} hold no valid tar header",
        ),
        ("damaged", Reason.NO_IMAGE, 1, "no part ending in .jpg/.jpeg/.png/.webp (has: cls)"),
        (
            "last",
            Reason.TRUNCATED,
            -1,
            f"the shard ends at byte {len(data):,}, inside last.jpg (2,304 bytes from "
            f"{data.index(b'last.jpg') + 512:,})",
        ),
    ]
    assert made.index.readable_N.tolist() == [True] + [False] * 8
    unreadable = {
        word: count
        for word, count in made.counts.items()
        if word in {reason.word for reason in Reason}
    }
    assert sum(unreadable.values()) + made.counts["readable"] == made.counts["samples"] == 9
    assert [note.partition(":")[0] for note in made.notes] == [
        "bad.tar",
        "bad.tar",
        "1 of 2 classes have no sample",
    ]


def test_repeated_keys_are_counted_and_kept(tmp_path):
    made = indexed(tmp_path, THREE, flat(sample("a", 0), sample("a", 1), sample("d", 0)))
    assert made.key == ["a", "b", "c", "a", "a", "d"]
    assert made.counts["repeated_keys"] == 2
    assert made.notes == [
        "2 samples repeat a key that an earlier sample has; they are told apart by shard and offset"
    ]


def test_empty_classes_are_noted(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"c{label:02d}" for label in range(15)))
    made = indexed_with_names(tmp_path, tmp_path / "names.txt")
    assert made.notes == [
        "13 of 15 classes have no sample: c02, c03, c04, c05, c06, c07, c08, c09, c10, c11 ..."
    ]
    assert made.counts["classes"] == 15


def indexed_with_names(tmp_path, names, **settings):
    write_tar(tmp_path / "train-0000.tar", THREE)
    out = tmp_path / "index"
    out.mkdir(exist_ok=True)
    config = IndexConfig(classes=names, max_bad_fraction=1.0, **settings)
    result = index([tmp_path / "train-0000.tar"], config, out=out, progress=Silent())
    return SimpleNamespace(index=SampleIndex.open(out), notes=result.notes, counts=result.counts)


def test_class_names_from_a_file(tmp_path):
    (tmp_path / "names.json").write_text('["dog", "cat"]')
    made = indexed_with_names(tmp_path, tmp_path / "names.json")
    assert made.index.classes == ("dog", "cat")
    assert made.index.label_N.tolist() == [1, 0, 1]
    with pytest.raises(LabelError, match=r"n_classes is 3 but index\.classes names 2"):
        indexed_with_names(tmp_path, tmp_path / "names.json", n_classes=3)


def test_known_classes_win(tmp_path):
    made = indexed(tmp_path, flat(sample("a", "dog"), sample("b", 0)), classes=("cat", "dog"))
    assert made.label == [1, 0]
    assert made.index.classes == ("cat", "dog")


def test_the_number_of_classes(tmp_path):
    made = indexed(tmp_path, THREE, n_classes=4)
    assert made.index.n_classes == 4
    made = indexed(tmp_path, THREE, n_classes=1)
    assert made.reason == [Reason.LABEL_OUTSIDE, Reason.KEPT, Reason.LABEL_OUTSIDE]


def test_too_many_bad_samples_stop_the_run_with_examples(tmp_path):
    good, bad = [sample(f"good{i}", 0) for i in range(4)], images_only(f"bad{i}" for i in range(6))
    files = flat(*good, bad)
    with pytest.raises(DataError) as caught:
        indexed(tmp_path, files, max_bad_fraction=0.5)
    said = str(caught.value)
    assert said.startswith("6 of 10 samples have no usable image or label, more than")
    assert "index.max_bad_fraction = 0.5" in said
    assert "'bad0': no member .cls (has: jpg)" in said and "'bad4'" in said
    assert "bad5" not in said
    assert indexed(tmp_path, files, max_bad_fraction=0.6).counts["no_label"] == 6


def test_wrong_label_setting_says_what_to_do(tmp_path):
    with pytest.raises(LabelError, match=r"no sample has a label\. Say where.*--labels"):
        indexed(tmp_path, images_only("abc"))
    with pytest.raises(LabelError, match=r"labels are mixed: 3 integers such as .* 1 names"):
        indexed(tmp_path, flat(THREE, sample("d", "cat")))


def test_shards_without_a_sample(tmp_path):
    made = indexed(tmp_path, [("readme", b"x")], THREE, [])
    assert made.key == ["a", "b", "c"] and made.shard == [1, 1, 1]
    assert [ref.n_samples for ref in made.index.shards] == [0, 3, 0]
    assert made.index.rows_of(2) == slice(3, 3)
    assert made.counts["other_members"] == 1
    with pytest.raises(DataError, match=r"2 shards hold no sample: no member has a key"):
        indexed(tmp_path, [("readme", b"x")], [])


def test_what_is_no_tar_is_refused_by_name(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"PK\3\4" * 200)
    with pytest.raises(ShardError, match=r"x\.tar: not a tar file"):
        indexed(tmp_path, THREE, tmp_path / "x.tar")


def test_which_member_is_the_image(tmp_path):
    files = [("a.seg.png", b"seg"), ("a.PNG", b"photo"), ("a.cls", b"0")]
    files += [("b.gif", b"x"), ("b.cls", b"0")]
    made = indexed(tmp_path, files)
    assert made.image_size == [5, 0] and made.image_offset[1] == -1
    assert made.reason == [Reason.KEPT, Reason.NO_IMAGE]
    made = indexed(tmp_path, files, image=("gif", "seg.png"))
    assert made.image_size == [3, 1]


def test_more_samples_than_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("shardsieve.shards.rows._BATCH", 4)
    keys = [f"{i:03d}" for i in range(11)]
    shard = flat(*(sample(key, int(key) % 3) for key in keys))
    other = flat(*(sample(f"x{key}", "7") for key in keys[:8]))
    made = indexed(tmp_path, shard, other)
    assert made.key == keys + [f"x{key}" for key in keys[:8]]
    assert made.label == [int(key) % 3 for key in keys] + [7] * 8
    assert [ref.n_samples for ref in made.index.shards] == [11, 8]
    # One chunk a column, so that the arrays are views of the file.
    assert all(made.index.table.column(name).num_chunks == 1 for name in SCHEMA.names)


labels = st.none() | st.integers(-1, 4) | st.just("zebra") | st.just("")


@given(
    shards=st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), labels, st.booleans()), max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_no_sample_is_lost(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("index")
    files, expected = [], []
    for number, drawn in enumerate(shards):
        members = []
        for position, (key, label, image) in enumerate(drawn):
            # A text member makes a sample even of one without image and label.
            key = f"{number}{position}{key}"
            members.append((f"{key}.txt", b""))
            members += [(f"{key}.jpg", b"x")] if image else []
            members += [] if label is None else [(f"{key}.cls", str(label).encode())]
            if not image:
                reason = Reason.NO_IMAGE
            elif label in (None, ""):
                reason = Reason.NO_LABEL
            else:
                reason = Reason.KEPT if label in (0, 1, 2) else Reason.LABEL_OUTSIDE
            expected.append((number, key, reason, label if label in (0, 1, 2) else -1))
        files.append(members)
    if not expected:
        with pytest.raises(DataError, match="hold no sample"):
            indexed(folder, *files, classes=("x", "y", "z"))
        return
    made = indexed(folder, *files, classes=("x", "y", "z"))
    assert list(zip(made.shard, made.key, made.reason, made.label, strict=True)) == expected
    explained = [detail is not None for detail in made.detail]
    assert explained == [reason != Reason.KEPT for _, _, reason, _ in expected]
    assert sum(ref.n_samples for ref in made.index.shards) == len(expected)


def test_shard_refs_survive_json(tmp_path):
    ref = ShardRef(tmp_path / "größe.tar", 2**40, 10**18 + 1, 5, 2, ("a", "b"))
    assert ShardRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref


def test_columns_are_arrays(tmp_path):
    made = indexed(tmp_path, THREE).index
    assert made.label_N.dtype == np.int32 and made.reason_N.dtype == np.uint8
    assert made.numbers("image_offset").tolist() == [512, 2560, 4608]
    assert len(made) == 3 and made.keys_N.to_pylist() == ["a", "b", "c"]


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def index_again(paths, out, previous, **settings):
    out.mkdir()
    return index(paths, IndexConfig(**settings), out=out, progress=Silent(), previous=previous)


@pytest.fixture
def opened(monkeypatch):
    """Names of the shards that were read."""
    names = []
    genuine = rows.open_tar
    monkeypatch.setattr(rows, "open_tar", lambda path: (names.append(path.name), genuine(path))[1])
    return names


def test_only_new_and_changed_shards_are_read_again(tmp_path, opened):
    indexed(tmp_path, THREE, flat(sample("d", 0)), flat(sample("e", 1)))
    paths = sorted(tmp_path.glob("*.tar"))
    first = tmp_path / "index"
    opened.clear()
    index_again(paths, tmp_path / "same", first)
    assert opened == []
    assert files_in(tmp_path / "same") == files_in(first)
    # One shard more in front, one that changed, and another order.
    more = write_tar(tmp_path / "a.tar", flat(sample("z", 1)))
    write_tar(paths[1], flat(sample("changed", 1), sample("d", 0)))
    index_again([more, paths[2], paths[1], paths[0]], tmp_path / "more", first)
    assert opened == ["a.tar", "train-0001.tar"]
    keys = SampleIndex.open(tmp_path / "more").keys_N.to_pylist()
    assert keys == ["z", "e", "changed", "d", "a", "b", "c"]
    opened.clear()
    index_again([more, paths[2], paths[1], paths[0]], tmp_path / "fresh", None)
    assert len(opened) == 4
    assert files_in(tmp_path / "more") == files_in(tmp_path / "fresh")


def test_other_settings_are_other_rows(tmp_path, opened):
    indexed(tmp_path, json_shard(LABELS), labels="json:label")
    (path,) = tmp_path.glob("*.tar")
    first = tmp_path / "index"
    opened.clear()
    settings = {"max_bad_fraction": 1.0}
    index_again([path], tmp_path / "1", first, labels="json:label", **settings)
    assert opened == []
    index_again([path], tmp_path / "2", first, labels="json:label", image=("gif",), **settings)
    assert opened == [path.name]
    with pytest.raises(LabelError, match="no sample has a label"):
        index_again([path], tmp_path / "3", first, labels="cls", **settings)
    assert len(opened) == 2


def test_an_interrupted_index_goes_on(tmp_path, opened, monkeypatch):
    paths = [write_tar(tmp_path / f"{n}.tar", flat(sample(f"{n}", n))) for n in range(4)]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    index_again(paths, undisturbed, None)
    genuine = rows.write_json
    count = iter(range(9))

    def crash(*arguments):
        if next(count) == 2:
            raise KeyboardInterrupt
        genuine(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            index_again(paths, out, None)
    opened.clear()
    (out / "parts" / "leftover.arrow.part").write_bytes(b"half")
    index(paths, IndexConfig(), out=out, progress=Silent())
    assert opened[0] == "2.tar" and len(opened) <= 2
    assert files_in(out) == files_in(undisturbed)


@pytest.mark.parametrize("options", [{"threads": 3}, {"backend": "reference"}])
def test_threads_and_backend_change_no_byte(tmp_path, options):
    indexed(tmp_path, THREE, [], flat(*(sample(f"k{i}", i % 3) for i in range(50))))
    (tmp_path / "other").mkdir()
    paths = sorted(tmp_path.glob("*.tar"))
    config = IndexConfig(max_bad_fraction=1.0)
    index(paths, config, out=tmp_path / "other", progress=Silent(), **options)
    assert files_in(tmp_path / "other") == files_in(tmp_path / "index")


def test_a_shard_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", THREE)
    genuine = rows.open_tar
    monkeypatch.setattr(
        rows, "open_tar", lambda path: (genuine(path), write_tar(path, THREE * 2))[0]
    )
    with pytest.raises(ShardError, match=r"a\.tar changed while it was indexed; run again"):
        indexed(tmp_path, path)


def test_where_keys_are_repeated_is_told(tmp_path):
    write_tar(tmp_path / "0.tar", flat(sample("a", 0), sample("b", 0), sample("a", 1)))
    write_tar(tmp_path / "1.tar", flat(sample("b", 1), sample("c", 1)))
    out = tmp_path / "index"
    result = index_again([tmp_path / "0.tar", tmp_path / "1.tar"], out, None)
    assert result.facts["repeated_keys"] == {
        "within_a_shard": 1,
        "across_shards": 1,
        "first": [
            {"key": "a", "samples": 2, "shards": [0]},
            {"key": "b", "samples": 2, "shards": [0, 1]},
        ],
    }


def test_equal_hashes_of_different_keys_are_no_repetition(tmp_path, monkeypatch):
    genuine = rows.RowReader._batch

    def colliding(reader, block, scan):
        batch = genuine(reader, block, scan)
        place = batch.schema.get_field_index("key_hash")
        zeros = pa.array(np.zeros(batch.num_rows, np.uint64))
        return batch.set_column(place, batch.schema.field(place), zeros)

    monkeypatch.setattr(rows.RowReader, "_batch", colliding)
    assert indexed(tmp_path, THREE).counts["repeated_keys"] == 0
    made = indexed(tmp_path, THREE, flat(sample("a", 0), sample("d", 0)))
    assert made.counts["repeated_keys"] == 1
