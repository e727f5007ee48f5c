"""Parquet files, Hugging Face data sets, and tables of paths."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import image_bytes

from shardsieve.errors import ConfigError, DataError, LabelError
from shardsieve.importers.layouts import Options

DATA = [image_bytes(number, "PNG" if number % 3 == 0 else "JPEG") for number in range(12)]
LABELS = [number % 3 for number in range(12)]
NAMES = ["ant", "bee", "cat"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub_table(rows, *, labels=LABELS, features=True, **more):
    images = [{"bytes": DATA[row], "path": f"{row}.jpg"} for row in rows]
    table = pa.table(
        {
            "image": pa.array(images, IMAGE),
            "label": pa.array([labels[row] for row in rows], pa.int64()),
            **{name: pa.array([values[row] for row in rows]) for name, values in more.items()},
        }
    )
    kinds = {
        "image": {"_type": "Image"},
        "label": {"names": NAMES, "_type": "ClassLabel"},
        **{name: {"names": ["x"] * 3, "_type": "ClassLabel"} for name in more},
    }
    if not features:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})


def write_stream(path, table, per_batch=2):
    with pa.ipc.new_stream(path, table.schema) as writer:
        for batch in table.to_batches(per_batch):
            writer.write_batch(batch)


def saved_split(folder, rows, split):
    """What save_to_disk writes for one split, in two files."""
    folder.mkdir(parents=True)
    half = len(rows) // 2
    names = [f"data-{part:05d}-of-00002.arrow" for part in range(2)]
    for name, part in zip(names, (rows[:half], rows[half:]), strict=True):
        write_stream(folder / name, hub_table(part, features=False))
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    features = {
        "image": {"_type": "Image"},
        "label": {"names": NAMES, "_type": "ClassLabel"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def same(got, rows, labels=LABELS):
    assert list(got.images.values()) == [DATA[row] for row in rows]
    assert list(got.labels.values()) == [labels[row] for row in rows]


# --- parquet


def test_parquet_folder(tmp_path, run_import):
    (tmp_path / "SRC" / "sub").mkdir(parents=True)
    plain = pa.table({"img": pa.array(DATA, pa.binary()), "target": LABELS})
    pq.write_table(plain.slice(0, 7), tmp_path / "SRC" / "a.parquet", row_group_size=3)
    pq.write_table(plain.slice(7), tmp_path / "SRC" / "sub" / "b.parquet", row_group_size=2)
    got = run_import("parquet", tmp_path / "SRC")
    same(got, range(12))
    assert list(got.images)[6:8] == ["a.parquet#6", "sub/b.parquet#0"]
    assert got.classes == ["0", "1", "2"]


def test_parquet_with_names(tmp_path, run_import):
    names = [NAMES[label] for label in LABELS]
    pq.write_table(pa.table({"jpg": DATA, "label": names}), tmp_path / "a.parquet")
    got = run_import("parquet", tmp_path / "a.parquet")
    same(got, range(12))
    assert got.classes == NAMES
    (tmp_path / "classes.txt").write_text("cat\nbee\ndog\n")
    got = run_import(
        "parquet", tmp_path / "a.parquet", "B", Options(classes=tmp_path / "classes.txt")
    )
    assert got.classes == ["cat", "bee", "dog"]
    assert list(got.labels.values()) == [2 - label for label in LABELS if label]
    assert {reason for reason, _ in got.problems.values()} == {"label_outside"}
    assert got.problems["a.parquet#0"][1] == "'ant' is not one of the class names"


def test_rows_without_image_or_label_are_listed(tmp_path, run_import):
    images = [*DATA[:3], None, b"", b"no image", *DATA[3:]]
    labels = [0, None, -1, 0, 0, 0, *LABELS[3:]]
    (tmp_path / "SRC").mkdir()
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
    pq.write_table(table, tmp_path / "SRC" / "a.parquet", row_group_size=4)
    got = run_import("parquet", tmp_path / "SRC")
    assert {source: reason for source, (reason, _) in got.problems.items()} == {
        "a.parquet#1": "no_label",
        "a.parquet#2": "no_label",
        "a.parquet#3": "missing",
        "a.parquet#4": "unreadable",
        "a.parquet#5": "not_an_image",
    }
    same(got, [0, *range(3, 12)])


def test_labels_counted_from_one(tmp_path, run_import):
    table = pa.table({"image": DATA, "label": [label + 1.0 for label in LABELS]})
    pq.write_table(table, tmp_path / "a.parquet")
    got = run_import("parquet", tmp_path / "a.parquet")
    assert any("give --first-label 1" in note for note in got.outcome.notes)
    same(run_import("parquet", tmp_path / "a.parquet", "B", Options(first_label=1)), range(12))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    with pytest.raises(LabelError, match="labels run from 1 to 3 and there are 3 classes"):
        run_import(
            "parquet", tmp_path / "a.parquet", "C", Options(classes=tmp_path / "classes.txt")
        )


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": ["a.jpg"], "label": [0]}, r"no column can hold images .*has: image .string., l"),
        ({"image": [b""], "kind": [0]}, r"which column holds the label\? It has: kind. Say it wi"),
        ({"a": [b""], "b": [b""], "label": [0]}, r"which column holds the image\? It has: a, b"),
        ({"image": [b""], "label": [0.5]}, "labels are not whole numbers"),
        ({"image": [b""], "label": [True]}, "labels are bool, not names or whole numbers"),
        ({"image": [b""], "label": [123456]}, "which would make 123,457 classes of 1 rows"),
        ({"image": [b""], "label": pa.array([None], pa.int64())}, "no row has a label"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, run_import, columns, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=says):
        run_import("parquet", tmp_path / "a.parquet")


def test_parquet_wrong_layout_is_named(tmp_path, run_import):
    with pytest.raises(DataError, match=r"there is no such file. Expected a \.parquet file"):
        run_import("parquet", tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no \.parquet file in it"):
        run_import("parquet", tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match="not a parquet table"):
        run_import("parquet", tmp_path)
    pq.write_table(pa.table({"image": DATA, "label": LABELS}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": DATA, "label": ["x"] * 12}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: column label is string, in a.parquet it is "):
        run_import("parquet", tmp_path)
    with pytest.raises(ConfigError, match="parquet is read in its own order"):
        run_import("parquet", tmp_path, shuffle=1)


# --- Hugging Face


def test_saved_to_disk(tmp_path, run_import):
    root = tmp_path / "SRC"
    saved_split(root / "train", range(9), "train")
    saved_split(root / "test", range(9, 12), "test")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    got = run_import("huggingface", root, options=Options(split="train"))
    same(got, range(9))
    assert got.classes == NAMES
    assert got.keys[0] == "train-00000000"
    same(run_import("huggingface", root, "TEST", Options(split="test")), range(9, 12))
    # One split's folder is a data set of its own.
    same(run_import("huggingface", root / "test", "ONE"), range(9, 12))
    with pytest.raises(DataError, match=r"several splits; choose one with --split: train, test"):
        run_import("huggingface", root, "A")
    with pytest.raises(DataError, match="no split 'dev'"):
        run_import("huggingface", root, "A", Options(split="dev"))
    with pytest.raises(DataError, match="is one split, test; leave --split out"):
        run_import("huggingface", root / "test", "A", Options(split="train"))


@pytest.mark.parametrize(
    "names",
    [("data/train-{}-of-00002", "data/test-{}-of-00001"), ("plain/train/{}", "plain/test/{}")],
)
def test_hub_clone(tmp_path, run_import, names):
    root = tmp_path / "SRC"
    for pattern, parts in zip(names, ([range(5), range(5, 9)], [range(9, 12)]), strict=True):
        for number, rows in enumerate(parts):
            digits = f"{number:05d}" if "-of-" in pattern else f"{number:04d}"
            path = root / f"{pattern.format(digits)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(hub_table(rows), path, row_group_size=2)
    got = run_import("huggingface", root, options=Options(split="train"))
    same(got, range(9))
    assert got.classes == NAMES
    same(run_import("huggingface", root, "TEST", Options(split="test")), range(9, 12))


def test_two_class_labels_need_a_choice(tmp_path, run_import):
    root = tmp_path / "SRC"
    root.mkdir()
    other = [2 - label for label in LABELS]
    pq.write_table(hub_table(range(12), coarse=other), root / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"which column holds the label\? It has: label, coarse"):
        run_import("huggingface", root)
    got = run_import("huggingface", root, options=Options(label_column="label"))
    same(got, range(12))
    with pytest.raises(LabelError, match="the class name 'x' is empty, two lines, or twice there"):
        run_import("huggingface", root, "A", Options(label_column="coarse"))


def test_images_that_are_only_named(tmp_path, run_import):
    root = tmp_path / "SRC"
    (root / "images").mkdir(parents=True)
    (root / "images" / "0.jpg").write_bytes(DATA[0])
    images = [{"bytes": None, "path": f"images/{row}.jpg"} for row in range(2)]
    table = hub_table(range(2)).set_column(0, "image", pa.array(images, IMAGE))
    write_stream(root / "my-data-train.arrow", table)
    got = run_import("huggingface", root)
    same(got, [0])
    assert got.problems["my-data-train.arrow#1"][0] == "missing"


def test_arrow_files_beside_streams(tmp_path, run_import):
    with pa.ipc.new_file(tmp_path / "train.arrow", hub_table([0]).schema) as writer:
        for batch in hub_table(range(12)).to_batches(5):
            writer.write_batch(batch)
    same(run_import("huggingface", tmp_path), range(12))


def test_hugging_face_wrong_layout_is_named(tmp_path, run_import):
    root = tmp_path / "SRC"
    root.mkdir()
    with pytest.raises(
        DataError, match=r"no Arrow or parquet file in it. Expected dataset_dict.js"
    ):
        run_import("huggingface", root)
    saved_split(root / "train", range(4), "train")
    (root / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"names files that are not there: .'data-00001-of-00002.a"):
        run_import("huggingface", root / "train")
    state = {"_data_files": [{"filename": "x"}], "_indices_data_files": [{"filename": "i"}]}
    (root / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"call flatten_indices\(\) and save it again"):
        run_import("huggingface", root / "train")
    (root / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: not JSON"):
        run_import("huggingface", root / "train")


# --- paths and labels


@pytest.fixture
def listed(tmp_path):
    root = tmp_path / "SRC"
    (root / "pics").mkdir(parents=True)
    for row, data in enumerate(DATA):
        (root / "pics" / f"{row}, {row}.img").write_bytes(data)
    return root, [f"pics/{row}, {row}.img" for row in range(12)]


def csv_lines(paths, labels):
    return "".join(f'"{path}",{label}\n' for path, label in zip(paths, labels, strict=True))


def test_csv_and_its_kin(listed, run_import):
    root, paths = listed
    (root / "a.csv").write_text("path,label,other\n" + csv_lines(paths, [f"{n},x" for n in LABELS]))
    tsv = "".join(f"{path}\t{NAMES[label]}\n" for path, label in zip(paths, LABELS, strict=True))
    (root / "a.tsv").write_text("file_name\tclass\n" + tsv)
    rows = zip(paths, LABELS, strict=True)
    (root / "a.jsonl").write_text(
        "".join(json.dumps({"image": path, "label": label}) + "\n" for path, label in rows)
    )
    pq.write_table(pa.table({"filename": paths, "label": LABELS}), root / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        got = run_import("table", root / name, name.upper())
        same(got, range(12))
        assert list(got.labels) == paths
        assert got.classes == (NAMES if name == "a.tsv" else ["0", "1", "2"])


def test_names_that_are_numbers_stay_names(listed, run_import):
    root, paths = listed
    (root / "a.csv").write_text("path,label\n" + csv_lines(paths, ["007", "7", "1970"] * 4))
    (root / "classes.txt").write_text("007\n1970\n7\n")
    got = run_import("table", root / "a.csv", options=Options(classes=root / "classes.txt"))
    assert got.classes == ["class-007", "class-1970", "class-7"]
    assert list(got.labels.values()) == [0, 2, 1] * 4


def test_what_a_list_can_have_wrong(listed, run_import):
    root, paths = listed
    extra = f'"{paths[0]}",0\n"{paths[1]}",2\ngone.jpg,1\n,1\nnolabel.jpg,\n'
    (root / "a.csv").write_text("path,label\n" + csv_lines(paths, LABELS) + extra)
    got = run_import("table", root / "a.csv")
    same(got, range(12))
    assert {source: reason for source, (reason, _) in got.problems.items() if source} == {
        paths[0]: "duplicate",
        paths[1]: "contradiction",
        "gone.jpg": "missing",
        "nolabel.jpg": "no_label",
    }
    assert sum(got.outcome.problems.values()) == 5


def test_list_wrong_layout_is_named(listed, run_import):
    root, paths = listed
    with pytest.raises(DataError, match=r"it is a folder. Expected a \.csv"):
        run_import("table", root)
    (root / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"a \.xlsx file. Expected"):
        run_import("table", root / "a.xlsx")
    (root / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DataError, match=r"which column holds the image\? It has: a, b. Say it with"
    ):
        run_import("table", root / "a.csv")
    with pytest.raises(DataError, match=r"no column 'c' .has: a, b.; see --image-column"):
        run_import("table", root / "a.csv", options=Options(image_column="c"))
    (root / "a.csv").write_text("path,label\n" + csv_lines([f"x/{p}" for p in paths], LABELS))
    with pytest.raises(DataError, match="12 of 12 listed images that were looked for are not the"):
        run_import("table", root / "a.csv")
    (root / "a.csv").write_text("")
    with pytest.raises(DataError, match="not a csv table"):
        run_import("table", root / "a.csv")
