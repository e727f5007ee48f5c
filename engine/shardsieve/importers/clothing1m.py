"""Clothing1M (Xiao et al. 2015) as its authors publish it.

```
SOURCE/
  images/0/ ... images/9/            1,037,497 images with noisy, 72,409 with clean labels
  noisy_label_kv.txt                 images/4/15/1234,5678.jpg 5
  clean_label_kv.txt
  noisy_train_key_list.txt           1,000,000 keys   (split train)
  clean_train_key_list.txt              47,570        (split clean-train)
  clean_val_key_list.txt                14,313        (split val)
  clean_test_key_list.txt               10,526        (split test)
  category_names_eng.txt             14 names, labels count from 0
```

The lists may lie in `SOURCE/annotations`, and the ten folders directly in `SOURCE`: both occur.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.errors import LabelError
from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import (
    find_file,
    published_count,
    read_lines,
    read_pairs,
    refuse_mostly_absent,
    wrong_layout,
)
from shardsieve.importers.plan import Plan, check_labels, refuse_repeats

_EXPECTED = (
    "noisy_label_kv.txt, clean_label_kv.txt, noisy_train_key_list.txt, "
    "clean_{train,val,test}_key_list.txt, category_names_eng.txt and images/0 .. images/9"
)
_FOLDERS = ("", "annotations")
_CLASSES = 14
# Key list, label file, entries.
_SPLITS = {
    "train": ("noisy_train_key_list.txt", "noisy_label_kv.txt", 1_000_000),
    "clean-train": ("clean_train_key_list.txt", "clean_label_kv.txt", 47_570),
    "val": ("clean_val_key_list.txt", "clean_label_kv.txt", 14_313),
    "test": ("clean_test_key_list.txt", "clean_label_kv.txt", 10_526),
}


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Joins a key list with its labels; noisy samples get their clean label, if any, in the JSON.

    Raises:
        DataError: A list is missing, or the images are not where the keys say.
        LabelError: There are not 14 class names, or labels count from one.
    """

    def find(name: str) -> Path:
        return find_file(source, name, _FOLDERS, kind, _EXPECTED)

    list_name, label_name, published = _SPLITS[options.split or "train"]
    keys = read_lines(find(list_name))
    names = read_lines(find("category_names_eng.txt")).to_pylist()
    if len(names) != _CLASSES:
        raise LabelError(
            f"{find('category_names_eng.txt')}: {len(names)} names, Clothing1M has {_CLASSES} "
            "classes"
        )
    labels, malformed = read_pairs(find(label_name))
    labels, repeats = refuse_repeats(labels)
    rows = pa.table({"source": keys, "label": _look_up(keys, labels)})
    if options.split in (None, "train"):
        clean, _ = refuse_repeats(read_pairs(find("clean_label_kv.txt"))[0])
        rows = rows.append_column("clean_label", _look_up(keys, clean))
    rows, unusable = check_labels(rows, names, where=label_name)
    rows, twice = refuse_repeats(rows)
    if not (source / "images").is_dir():
        rows = _without_images(source, rows, kind)
    refuse_mostly_absent(source, rows.column("source"), kind, _EXPECTED)
    # A repeat in the label file matters only to samples of this split.
    repeats = repeats.filter(pc.is_in(repeats.column("source"), value_set=keys.combine_chunks()))
    problems = pa.concat_tables([malformed, repeats, unusable, twice])
    notes = published_count(len(keys), published, list_name)
    return Plan(rows, tuple(names), FileReader(source), problems, notes)


def _look_up(keys: pa.ChunkedArray, labels: pa.Table) -> pa.ChunkedArray:
    positions = pc.index_in(keys, value_set=labels.column("source").combine_chunks())
    return labels.column("label").take(positions)


def _without_images(source: Path, rows: pa.Table, kind: str) -> pa.Table:
    if not any((source / str(digit)).is_dir() for digit in range(10)):
        raise wrong_layout(source, kind, "no folder images in it", _EXPECTED)
    short = pc.replace_substring_regex(rows.column("source"), r"^images/", "")
    return rows.set_column(rows.schema.get_field_index("source"), "source", short)
