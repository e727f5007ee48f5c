"""Clothing1M: key lists and label files."""

import pytest
from published import image_bytes

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.layouts import Options

NAMES = [
    *("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker"),
    *("Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear"),
]


@pytest.fixture
def miniature(tmp_path):
    """Twelve noisy images, three of which have a clean label, and clean ones for each split."""
    root = tmp_path / "clothing1M"
    noisy = {f"images/{i % 10}/{i:02d}/{i}00,{i}55.jpg": i % 14 for i in range(12)}
    clean = {f"images/{i % 10}/{i:02d}/{i}00,{i}55.jpg": (i + 1) % 14 for i in range(9, 18)}
    for number, key in enumerate({**noisy, **clean}):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(image_bytes(number))
    (root / "category_names_eng.txt").write_text("\n".join(NAMES))
    write_pairs(root / "noisy_label_kv.txt", noisy)
    write_pairs(root / "clean_label_kv.txt", clean)
    keys = sorted(clean)
    (root / "noisy_train_key_list.txt").write_text("\n".join(noisy) + "\n")
    for number, split in enumerate(("train", "val", "test")):
        lines = "\n".join(keys[3 * number : 3 * number + 3])
        (root / f"clean_{split}_key_list.txt").write_text(lines + "\n")
    return root, noisy, clean, keys


def write_pairs(path, labels):
    path.write_text("".join(f"{key} {label}\n" for key, label in labels.items()))


def test_noisy_training_set(miniature, run_import):
    root, noisy, clean, _ = miniature
    got = run_import("clothing1m", root)
    assert got.labels == noisy
    assert got.images == {key: (root / key).read_bytes() for key in noisy}
    assert got.classes == NAMES
    assert got.problems == {}
    # In the order of the list.
    assert list(got.labels) == list(noisy)
    known = {key: more["clean_label"] for key, more in got.metadata.items() if len(more) > 1}
    assert known == {key: label for key, label in clean.items() if key in noisy}
    assert any("12 entries; 1,000,000 were published" in note for note in got.outcome.notes)


@pytest.mark.parametrize(("split", "place"), [("clean-train", 0), ("val", 1), ("test", 2)])
def test_clean_splits(miniature, run_import, split, place):
    root, _, clean, keys = miniature
    got = run_import("clothing1m", root, options=Options(split=split))
    assert got.labels == {key: clean[key] for key in keys[3 * place : 3 * place + 3]}
    assert got.keys[0] == f"{split}-00000000"


def test_missing_double_and_unlabelled_entries_are_listed(miniature, run_import):
    root, noisy, _, _ = miniature
    keys = list(noisy)
    (root / keys[0]).unlink()
    with (root / "noisy_train_key_list.txt").open("a") as file:
        file.write(f"{keys[1]}\nimages/7/77/unknown.jpg\n")
    with (root / "noisy_label_kv.txt").open("a") as file:
        file.write(f"{keys[2]} 13\nonly-a-name\n")
    labels = {**noisy, keys[3]: 14}
    text = (root / "noisy_label_kv.txt").read_text()
    (root / "noisy_label_kv.txt").write_text(text.replace(f"{keys[3]} 3\n", f"{keys[3]} 14\n"))
    got = run_import("clothing1m", root)
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        keys[0]: "missing",
        keys[1]: "duplicate",
        keys[2]: "contradiction",
        keys[3]: "label_outside",
        "images/7/77/unknown.jpg": "no_label",
        "only-a-name": "malformed_line",
    }
    assert got.problems[keys[2]][1] == "listed before with label 2, which stands; here with 13"
    del labels[keys[0]], labels[keys[3]]
    assert got.labels == labels


def test_lists_in_annotations_and_folders_without_images(miniature, run_import):
    root, noisy, _, _ = miniature
    (root / "annotations").mkdir()
    for file in root.glob("*.txt"):
        file.rename(root / "annotations" / file.name)
    for folder in (root / "images").iterdir():
        folder.rename(root / folder.name)
    (root / "images").rmdir()
    got = run_import("clothing1m", root)
    assert got.labels == {key.removeprefix("images/"): label for key, label in noisy.items()}


def test_labels_counted_from_one_are_refused(miniature, run_import):
    root, noisy, _, _ = miniature
    more = {f"images/0/00/{n}.jpg": n % 14 for n in range(20, 34)}
    write_pairs(root / "noisy_label_kv.txt", {k: v + 1 for k, v in {**noisy, **more}.items()})
    (root / "noisy_train_key_list.txt").write_text("\n".join({**noisy, **more}))
    with pytest.raises(LabelError, match="labels run from 1 to 14 and there are 14 classes"):
        run_import("clothing1m", root)


def test_wrong_layout_is_named(miniature, run_import):
    root, _, _, _ = miniature
    with pytest.raises(DataError, match=r"no noisy_train_key_list.txt in it, but .*clothing1M/noi"):
        run_import("clothing1m", root.parent)
    (root / "images").rename(root / "pictures")
    with pytest.raises(DataError, match=r"no folder images in it. Expected noisy_label_kv.txt, "):
        run_import("clothing1m", root)
    (root / "images").mkdir()
    with pytest.raises(DataError, match="12 of 12 listed images that were looked for are not th"):
        run_import("clothing1m", root)
    (root / "category_names_eng.txt").write_text("a\nb\n")
    with pytest.raises(LabelError, match="2 names, Clothing1M has 14"):
        run_import("clothing1m", root)
