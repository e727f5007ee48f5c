"""ANIMAL-10N: the label is in the name, or in the record."""

import io

import numpy as np
import pytest
from PIL import Image
from published import image_bytes

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.animal10n import CLASSES
from shardsieve.importers.layouts import Options


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "ANIMAL-10N"
    for folder, ids in (("training", range(1, 13)), ("testing", range(5))):
        (root / folder).mkdir(parents=True)
        for number in ids:
            name = f"{number * 3 % 10}_{number}.jpg"
            (root / folder / name).write_bytes(image_bytes(number))
    return root


def test_raw(raw, run_import):
    got = run_import("animal10n", raw)
    want = {f"{number * 3 % 10}_{number}.jpg": number * 3 % 10 for number in range(1, 13)}
    # By id: 0_10.jpg comes after 7_9.jpg.
    assert list(got.labels.items()) == list(want.items())
    assert got.images == {name: (raw / "training" / name).read_bytes() for name in want}
    assert got.classes == list(CLASSES)
    test = run_import("animal10n", raw, "TEST", Options(split="test"))
    assert test.outcome.samples == 5


def test_raw_names_that_say_nothing(raw, run_import):
    (raw / "training" / "cat.jpg").write_bytes(image_bytes(1))
    (raw / "training" / "10_99.jpg").write_bytes(image_bytes(1))
    got = run_import("animal10n", raw)
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        "cat.jpg": "no_label",
        "10_99.jpg": "label_outside",
    }


@pytest.mark.parametrize("order", [">u4", "<u4"])
def test_binary(tmp_path, run_import, order):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), np.uint8)
    labels = np.array([3, 0, 9, 1, 2, 4])
    header = np.stack([np.arange(70, 76), labels], axis=1).astype(order).view(np.uint8)
    records = np.concatenate([header.reshape(6, 8), pixels.reshape(6, -1)], axis=1)
    for file, part in (("data_batch_1", records[:4]), ("data_batch_2", records[4:])):
        (tmp_path / f"{file}.bin").write_bytes(part.tobytes())
    got = run_import("animal10n", tmp_path, per_shard=5)
    sources = [f"data_batch_1.bin#{n}" for n in range(4)] + [
        f"data_batch_2.bin#{n}" for n in range(2)
    ]
    assert list(got.labels.items()) == list(zip(sources, labels.tolist(), strict=True))
    assert [more["id"] for more in got.metadata.values()] == list(range(70, 76))
    for source, want in zip(sources, pixels, strict=True):
        with Image.open(io.BytesIO(got.images[source])) as image:
            assert np.array_equal(np.asarray(image), want.transpose(1, 2, 0))


def test_wrong_layout_is_named(tmp_path, raw, run_import):
    with pytest.raises(DataError, match=r"neither a folder training nor data_batch_.* in it"):
        run_import("animal10n", tmp_path)
    (raw / "testing" / "readme.txt").write_text("")
    for path in (raw / "testing").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"no LABEL_ID.jpg among the 1 files of testing"):
        run_import("animal10n", raw, options=Options(split="test"))
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="3,073 bytes are no whole number of ANIMAL-10N records"):
        run_import("animal10n", tmp_path, options=Options(split="test"))
    (tmp_path / "test_batch.bin").write_bytes(bytes(4) + b"\1" * 4 + bytes(12288))
    with pytest.raises(DataError, match="are no labels below 10"):
        run_import("animal10n", tmp_path, options=Options(split="test"))


def test_names_counted_from_one_are_refused(tmp_path, run_import):
    (tmp_path / "training").mkdir()
    for label in range(1, 11):
        (tmp_path / "training" / f"{label}_{label}.jpg").write_bytes(image_bytes(label))
    with pytest.raises(LabelError, match="from 1 to 10"):
        run_import("animal10n", tmp_path)
