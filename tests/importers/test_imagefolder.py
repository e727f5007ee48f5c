"""A folder per class."""

import os

import pytest
from published import image_bytes

from shardsieve.errors import DataError
from shardsieve.importers.layouts import Options


def folders(root, *names, per_class=3):
    written = {}
    for label, name in enumerate(names):
        for number in range(per_class):
            data = image_bytes(label * 100 + number)
            path = root / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            written[f"{name}/{number}.jpg"] = data
    return written


def test_every_image_with_its_label_and_bytes(tmp_path, run_import):
    written = folders(tmp_path / "SRC", "cat", "dog")
    deep = image_bytes(7, "PNG")
    (tmp_path / "SRC" / "dog" / "more").mkdir()
    (tmp_path / "SRC" / "dog" / "more" / "photo.v2.png").write_bytes(deep)
    written["dog/more/photo.v2.png"] = deep
    got = run_import("imagefolder", tmp_path / "SRC")
    assert got.images == written
    assert got.labels == {source: int(source.startswith("dog")) for source in written}
    assert got.classes == ["cat", "dog"]
    assert got.problems == {}
    # One key per image, although two file names begin alike up to a dot.
    assert len(set(got.keys)) == got.outcome.samples == 7
    assert got.outcome.per_class == (3, 4)


def test_shardsieve_reads_the_shards(tmp_path, run_import):
    from shardsieve.config import load_config
    from shardsieve.pipeline import run_stages

    folders(tmp_path / "SRC", "cat", "dog")
    got = run_import("imagefolder", tmp_path / "SRC")
    config = load_config(values={"index.classes": tmp_path / "OUT" / "classes.txt"})
    run = run_stages(["index"], tmp_path / "RUN", config, [str(tmp_path / "OUT")])
    assert run.index.classes == ("cat", "dog")
    assert run.index.table.column("key").to_pylist() == got.keys
    assert run.index.label_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert run.index.readable_N.all()


def test_what_is_no_image_is_listed(tmp_path, run_import):
    folders(tmp_path / "SRC", "cat", "dog")
    cat = tmp_path / "SRC" / "cat"
    (cat / "Thumbs.db").write_bytes(b"x")
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (cat / "text.png").write_bytes(b"not an image")
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    (cat / os.fsdecode(b"\xff.jpg")).write_bytes(image_bytes(1))
    (tmp_path / "SRC" / "loose.jpg").write_bytes(image_bytes(1))
    (tmp_path / "SRC" / "empty-class").mkdir()
    got = run_import("imagefolder", tmp_path / "SRC")
    assert got.outcome.samples == 6
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        "cat/Thumbs.db": "not_an_image",
        "cat/empty.jpg": "unreadable",
        "cat/page.jpg": "not_an_image",
        "cat/text.png": "not_an_image",
        "cat/gone.jpg": "missing",
        "cat/\\udcff.jpg": "not_an_image",
        "loose.jpg": "no_label",
    }
    assert "web page" in got.problems["cat/page.jpg"][1]
    assert any("empty-class" in note for note in got.outcome.notes)


def test_what_a_file_is_called_does_not_matter(tmp_path, run_import):
    folders(tmp_path / "SRC", "cat", "dog")
    (tmp_path / "SRC" / "cat" / "0.jpg").write_bytes(image_bytes(5, "PNG"))
    (tmp_path / "SRC" / "dog" / "0.jpg").write_bytes(image_bytes(6, "GIF"))
    (tmp_path / "SRC" / "dog" / "1.jpg").write_bytes(image_bytes(7, "WEBP"))
    got = run_import("imagefolder", tmp_path / "SRC")
    table = {
        row["source"]: row["extension"]
        for row in __import__("pyarrow.parquet")
        .parquet.read_table(tmp_path / "OUT" / "samples.parquet")
        .to_pylist()
    }
    assert table["cat/0.jpg"] == "png"
    assert table["dog/0.jpg"] == "gif"
    assert table["dog/1.jpg"] == "webp"
    assert table["cat/1.jpg"] == "jpg"
    assert any("1 .gif" in note and "index.image" in note for note in got.outcome.notes)


def test_numbered_folders_are_their_numbers(tmp_path, run_import):
    folders(tmp_path / "SRC", *(str(number) for number in range(11)), per_class=1)
    got = run_import("imagefolder", tmp_path / "SRC")
    assert got.labels["10/0.jpg"] == 10
    assert got.labels["2/0.jpg"] == 2
    assert got.classes == [str(label) for label in range(11)]


def test_folders_numbered_from_one_are_named_so(tmp_path, run_import):
    folders(tmp_path / "SRC", "1", "2", "3", per_class=1)
    got = run_import("imagefolder", tmp_path / "SRC")
    assert got.labels["1/0.jpg"] == 0
    assert got.classes == ["class-1", "class-2", "class-3"]
    assert any("1 is class 0, named class-1" in note for note in got.outcome.notes)


def test_copies_are_counted(tmp_path, run_import):
    folders(tmp_path / "SRC", "cat", "dog")
    data = (tmp_path / "SRC" / "cat" / "0.jpg").read_bytes()
    (tmp_path / "SRC" / "cat" / "copy.jpg").write_bytes(data)
    (tmp_path / "SRC" / "dog" / "copy.jpg").write_bytes(data)
    got = run_import("imagefolder", tmp_path / "SRC")
    assert got.outcome.samples == 8
    assert any("2 images are byte for byte copies of another, 1 of" in n for n in got.outcome.notes)


def test_linked_folders_are_followed_once(tmp_path, run_import):
    written = folders(tmp_path / "SRC", "cat")
    folders(tmp_path / "ELSEWHERE", "dog")
    (tmp_path / "SRC" / "dog").symlink_to(tmp_path / "ELSEWHERE" / "dog")
    (tmp_path / "SRC" / "cat" / "loop").symlink_to(tmp_path / "SRC" / "cat")
    got = run_import("imagefolder", tmp_path / "SRC")
    assert len(got.images) == 6
    assert set(written) < set(got.images)


def test_splits_are_not_classes(tmp_path, run_import):
    folders(tmp_path / "SRC" / "train", "cat", "dog")
    folders(tmp_path / "SRC" / "val", "cat", "dog")
    with pytest.raises(DataError, match=r"which are splits, not classes.*--split train"):
        run_import("imagefolder", tmp_path / "SRC")
    got = run_import("imagefolder", tmp_path / "SRC", options=Options(split="val"))
    assert got.classes == ["cat", "dog"]
    assert got.keys[0] == "val-00000000"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: root.write_text("x"), "it is a file"),
        (lambda root: (root.mkdir(), (root / "1.jpg").write_text("x")), "no folder in it, 1 files"),
        (lambda root: (root / "cat").mkdir(parents=True), "no image in its 1 folders"),
    ],
    ids=["nothing", "file", "flat", "empty"],
)
def test_wrong_layout_is_named(tmp_path, run_import, make, says):
    make(tmp_path / "SRC")
    with pytest.raises(DataError, match=says) as error:
        run_import("imagefolder", tmp_path / "SRC")
    assert "Expected a folder per class" in str(error.value)
