"""Food-101N: lists with a header, and labels that say whether a label is right."""

import pytest
from published import image_bytes

from shardsieve.errors import DataError
from shardsieve.importers.layouts import Options

CLASSES = ["apple_pie", "baby_back_ribs", "baklava"]


@pytest.fixture
def miniature(tmp_path):
    root = tmp_path / "Food-101N_release"
    (root / "meta").mkdir(parents=True)
    images = {}
    for label, name in enumerate(CLASSES):
        (root / "images" / name).mkdir(parents=True)
        for number in range(4):
            images[f"{name}/{label}{number}f.jpg"] = image_bytes(10 * label + number)
    for path, data in images.items():
        (root / "images" / path).write_bytes(data)
    (root / "meta" / "classes.txt").write_text("class_name\n" + "\n".join(CLASSES) + "\n")
    (root / "meta" / "imagelist.tsv").write_text("class_name/key\n" + "\n".join(images) + "\n")
    paths = list(images)
    verified = {paths[0]: 1, paths[1]: 0, paths[6]: 1}
    checked = {paths[9]: 0}
    for name, marks in (("train", verified), ("val", checked)):
        lines = "".join(f"{path}\t{mark}\n" for path, mark in marks.items())
        (root / "meta" / f"verified_{name}.tsv").write_text(
            "class_name/key\tverification_label\n" + lines
        )
    return root, images, verified, checked


def label_of(path):
    return CLASSES.index(path.split("/")[0])


def test_all_images_and_what_was_verified(miniature, run_import):
    root, images, verified, checked = miniature
    got = run_import("food101n", root)
    assert got.images == images
    assert got.labels == {path: label_of(path) for path in images}
    # The header is no class: without care every label would be one too high.
    assert got.classes == CLASSES
    assert {p: m["verified"] for p, m in got.metadata.items() if "verified" in m} == {
        **verified,
        **checked,
    }
    assert any("12 entries; 310,009 were published" in note for note in got.outcome.notes)


@pytest.mark.parametrize(("split", "marks"), [("verified-train", 2), ("verified-val", 3)])
def test_verified_splits(miniature, run_import, split, marks):
    root, want = miniature[0], miniature[marks]
    got = run_import("food101n", root, options=Options(split=split))
    assert {path: more["verified"] for path, more in got.metadata.items()} == want
    assert got.labels == {path: label_of(path) for path in want}


def test_the_image_that_two_lists_put_in_two_classes(miniature, run_import):
    """In the real lists one key is filet_mignon and hot_and_sour_soup: two entries, one file."""
    root, images, _, _ = miniature
    with (root / "meta" / "verified_train.tsv").open("a") as file:
        file.write("baklava/00f.jpg\t1\n")
    got = run_import("food101n", root, options=Options(split="verified-train"))
    assert got.problems["baklava/00f.jpg"][0] == "missing"
    assert run_import("food101n", root, "ALL").images == images


def test_odd_lines_are_listed(miniature, run_import):
    root, images, _, _ = miniature
    with (root / "meta" / "imagelist.tsv").open("a") as file:
        file.write("no-slash.jpg\npizza/1.jpg\napple_pie/00f.jpg\n")
    got = run_import("food101n", root)
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        "no-slash.jpg": "malformed_line",
        "pizza/1.jpg": "label_outside",
        "apple_pie/00f.jpg": "duplicate",
    }
    assert got.images == images


def test_wrong_layout_is_named(miniature, run_import):
    root, *_ = miniature
    (root / "meta" / "imagelist.tsv").rename(root / "meta" / "images.tsv")
    with pytest.raises(DataError, match=r"no meta/imagelist.tsv in it. Expected meta/classes.txt"):
        run_import("food101n", root)
    with pytest.raises(DataError, match=r"no folder images in it"):
        run_import("food101n", root / "meta")
