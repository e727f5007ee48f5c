"""WebVision 1.0 and its mini version."""

import pytest
from published import image_bytes

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.layouts import Options


@pytest.fixture
def miniature(tmp_path):
    root = tmp_path / "webvision"
    (root / "info").mkdir(parents=True)
    synsets = [f"n{label:08d} thing {label}, other name" for label in range(1000)]
    (root / "info" / "synsets.txt").write_text("\n".join(synsets) + "\n")
    listed = {
        "train_filelist_google.txt": {
            f"google/q{q:04d}/pic_{q}-{n}.jpg": label
            for q, label in ((1, 0), (2, 0), (80, 49), (81, 50), (1631, 999))
            for n in range(2)
        },
        "train_filelist_flickr.txt": {f"flickr/q{q:04d}/{q}.jpg": q for q in (1, 60, 998)},
        "val_filelist.txt": {f"val{n:06d}.jpg": label for n, label in enumerate((0, 49, 50, 999))},
    }
    number = 0
    for name, labels in listed.items():
        folder = root / ("val_images_256" if name.startswith("val") else "")
        for path in labels:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(image_bytes(number := number + 1))
        text = "".join(f"{path} {label}\n" for path, label in labels.items())
        (root / "info" / name).write_text(text)
    return root, synsets, *listed.values()


def test_whole(miniature, run_import):
    root, synsets, google, flickr, val = miniature
    got = run_import("webvision", root)
    assert got.labels == {**google, **flickr}
    assert got.images == {path: (root / path).read_bytes() for path in got.labels}
    assert got.classes == synsets
    one = run_import("webvision", root, "FLICKR", Options(split="train-flickr"))
    assert one.labels == flickr
    checked = run_import("webvision", root, "VAL", Options(split="val"))
    assert checked.labels == val
    assert checked.images == {
        path: (root / "val_images_256" / path).read_bytes() for path in checked.labels
    }


def test_mini_is_the_first_fifty_classes_of_google(miniature, run_import):
    root, synsets, google, _, val = miniature
    got = run_import("webvision-mini", root)
    assert got.labels == {path: label for path, label in google.items() if label < 50}
    assert got.classes == synsets[:50]
    assert got.problems == {}
    checked = run_import("webvision-mini", root, "VAL", Options(split="val"))
    assert checked.labels == {path: label for path, label in val.items() if label < 50}
    assert any("2 entries; 2,500 were published" in note for note in checked.outcome.notes)


def test_archives_unpacked_into_train_and_val(miniature, run_import):
    root, _, google, flickr, val = miniature
    (root / "train").mkdir()
    (root / "val").mkdir()
    (root / "google").rename(root / "train" / "google")
    (root / "val_images_256").rename(root / "val" / "val_images_256")
    got = run_import("webvision", root)
    assert got.labels == {**{f"train/{p}": label for p, label in google.items()}, **flickr}
    assert run_import("webvision", root, "VAL", Options(split="val")).labels == val


def test_missing_and_repeated_entries_are_listed(miniature, run_import):
    root, _, google, _, _ = miniature
    first, second, third = list(google)[:3]
    (root / first).unlink()
    with (root / "info" / "train_filelist_google.txt").open("a") as file:
        file.write(f"{second} 0\n{third} 7\ngoogle/q0009/x.jpg 1000\n")
    got = run_import("webvision-mini", root)
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        first: "missing",
        second: "duplicate",
        third: "contradiction",
        "google/q0009/x.jpg": "label_outside",
    }


def test_wrong_layout_is_named(miniature, run_import):
    root, synsets, *_ = miniature
    with pytest.raises(DataError, match=r"no info/synsets.txt in it, but .*webvision/info/synsets"):
        run_import("webvision", root.parent)
    (root / "google").rename(root / "Google")
    with pytest.raises(DataError, match=r"no folder google, train/google, google_resized_256/goog"):
        run_import("webvision-mini", root)
    (root / "info" / "synsets.txt").write_text("\n".join(synsets[:50]))
    with pytest.raises(LabelError, match=r"50 synsets, WebVision 1.0 has 1000"):
        run_import("webvision-mini", root)
    with pytest.raises(DataError, match="there is no such folder"):
        run_import("webvision", root / "nowhere")
