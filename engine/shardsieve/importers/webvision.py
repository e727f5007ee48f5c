"""WebVision 1.0 (Li et al. 2017), and `mini`: its first 50 classes from Google alone.

```
SOURCE/
  info/synsets.txt                  n01440764 tench, Tinca tinca     label i is line i, from 0
  info/train_filelist_google.txt    google/q0001/LIw1nMSb5cnH6M.jpg 0
  info/train_filelist_flickr.txt    flickr/q0001/2345678.jpg 0
  info/val_filelist.txt             val000001.jpg 0
  google/q0001/ ...  flickr/q0001/ ...  val_images_256/
```

The resized images come in archives that many unpack into `train/` and `val/`, or into folders
called like the archives; these are looked at, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from shardsieve.errors import LabelError
from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import (
    find_base,
    find_file,
    published_count,
    read_lines,
    read_pairs,
    refuse_mostly_absent,
)
from shardsieve.importers.plan import PROBLEMS, Plan, check_labels, refuse_repeats

_EXPECTED = (
    "info/synsets.txt, info/train_filelist_google.txt, info/train_filelist_flickr.txt, "
    "info/val_filelist.txt, google/q0001 .., flickr/q0001 .. and val_images_256"
)
_CLASSES = 1000
_MINI = 50
_BASES = {
    "google": ("", "train", "google_resized_256"),
    "flickr": ("", "train", "flickr_resized_256"),
}
_VAL = ("val_images_256", "val_images", "val_images_resized")
# What the mini set has by everyone's count.
_MINI_TRAIN, _MINI_VAL, _VAL_IMAGES = 65_944, 2_500, 50_000


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Reads the file lists of a split.

    Raises:
        DataError: A list or a folder is missing.
        LabelError: There are not 1,000 synsets, or labels count from one.
    """
    mini = kind == "webvision-mini"
    split = options.split or "train"
    names = read_lines(find_file(source, "synsets.txt", ("info",), kind, _EXPECTED)).to_pylist()
    if len(names) != _CLASSES:
        raise LabelError(
            f"{source / 'info/synsets.txt'}: {len(names)} synsets, WebVision 1.0 has {_CLASSES}"
        )
    if split == "val":
        return _val(kind, source, names, mini)
    engines = {"train-google": ["google"], "train-flickr": ["flickr"]}.get(split)
    engines = engines or (["google"] if mini else ["google", "flickr"])
    bases = {find_base(source, e, _BASES[e], kind, _EXPECTED) for e in engines}
    parts = []
    problems = [PROBLEMS.empty_table()]
    for engine in engines:
        file = find_file(source, f"train_filelist_{engine}.txt", ("info",), kind, _EXPECTED)
        rows, found = _listed(file, names, mini)
        base = find_base(source, engine, _BASES[engine], kind, _EXPECTED)
        refuse_mostly_absent(base, rows.column("source"), kind, _EXPECTED)
        parts.append(_below(source, base, rows) if len(bases) > 1 else rows)
        problems.append(found)
    rows = pa.concat_tables(parts)
    base = source if len(bases) > 1 else next(iter(bases))
    notes = published_count(rows.num_rows, _MINI_TRAIN, "the mini training set") if mini else ()
    classes = tuple(names[:_MINI] if mini else names)
    return Plan(rows, classes, FileReader(base), pa.concat_tables(problems), notes)


def _val(kind: str, source: Path, names: list[str], mini: bool) -> Plan:
    file = find_file(source, "val_filelist.txt", ("info",), kind, _EXPECTED)
    rows, problems = _listed(file, names, mini)
    folders = [*_VAL, *(f"val/{name}" for name in _VAL)]
    # Some unpack the images straight into val/.
    present = [name for name in folders if (source / name).is_dir()] or ["val"]
    base = find_base(source, present[0], ("",), kind, _EXPECTED) / present[0]
    refuse_mostly_absent(base, rows.column("source"), kind, _EXPECTED)
    published = _MINI_VAL if mini else _VAL_IMAGES
    notes = published_count(rows.num_rows, published, "the validation set")
    return Plan(rows, tuple(names[:_MINI] if mini else names), FileReader(base), problems, notes)


def _listed(file: Path, names: list[str], mini: bool) -> tuple[pa.Table, pa.Table]:
    rows, malformed = read_pairs(file)
    rows, outside = check_labels(rows, names, where=file.name)
    if mini:
        # Not a problem of the source: mini is made of the first 50 classes.
        rows = rows.filter(pa.array(rows.column("label").to_numpy() < _MINI))
    rows, repeats = refuse_repeats(rows)
    return rows, pa.concat_tables([malformed, outside, repeats])


def _below(source: Path, base: Path, rows: pa.Table) -> pa.Table:
    """Names the images from the source on, as Google's and Flickr's have no folder in common."""
    prefix = str(base.relative_to(source))
    if prefix == ".":
        return rows
    full = pa.compute.binary_join_element_wise(
        pa.array(np.full(rows.num_rows, prefix)), rows.column("source"), "/"
    )
    return rows.set_column(0, "source", full)
