"""Food-101N (Lee et al. 2018) as its authors publish it.

```
SOURCE/
  images/apple_pie/7ff1b1a1.jpg ...
  meta/classes.txt           first line `class_name`, then 101 names; label i is the i-th of them
  meta/imagelist.tsv         first line `class_name/key`, then apple_pie/7ff1b1a1.jpg   (310,009)
  meta/verified_train.tsv    first line `class_name/key<tab>verification_label`, then ...<tab>1
  meta/verified_val.tsv
```

The verification label says whether the class label is right; it goes into the sample's JSON as
`verified`. Food-101N has no test set of its own: the authors test on Food-101's.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import (
    find_file,
    published_count,
    read_lines,
    refuse_mostly_absent,
    wrong_layout,
)
from shardsieve.importers.plan import (
    PROBLEMS,
    Plan,
    Problem,
    problem_table,
    refuse_repeats,
    refuse_rows,
)

_EXPECTED = (
    "meta/classes.txt, meta/imagelist.tsv, meta/verified_train.tsv, meta/verified_val.tsv and "
    "images/CLASS/*.jpg"
)
_LISTS = {
    "train": "imagelist.tsv",
    "verified-train": "verified_train.tsv",
    "verified-val": "verified_val.tsv",
}
_HEADERS = ("class_name", "class_name/key")
_IMAGES = 310_009


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Reads a list of images; the class is the folder.

    Raises:
        DataError: A list or the images are missing.
    """

    def find(name: str) -> Path:
        return find_file(source, name, ("meta", ""), kind, _EXPECTED)

    if not (source / "images").is_dir():
        raise wrong_layout(source, kind, "no folder images in it", _EXPECTED)
    split = options.split or "train"
    names = _without_header(read_lines(find("classes.txt"))).to_pylist()
    rows, malformed = _entries(find(_LISTS[split]))
    if split == "train":
        marks = [_entries(find(_LISTS[other]))[0] for other in ("verified-train", "verified-val")]
        marked = pa.concat_tables(marks)
        where = pc.index_in(
            rows.column("source"), value_set=marked.column("source").combine_chunks()
        )
        verified = marked.column("verified").take(where)
        rows = rows.set_column(rows.schema.get_field_index("verified"), "verified", verified)
    folders = pc.list_element(pc.split_pattern(rows.column("source"), "/", max_splits=1), 0)
    labels = pc.index_in(folders, value_set=pa.array(names, pa.string()))
    rows = rows.add_column(1, "label", labels)
    unknown_N = pc.is_null(labels).to_numpy()
    rows, unknown = refuse_rows(
        rows, unknown_N, Problem.LABEL_OUTSIDE, "its folder is no class of classes.txt"
    )
    rows, twice = refuse_repeats(rows)
    refuse_mostly_absent(source / "images", rows.column("source"), kind, _EXPECTED)
    problems = pa.concat_tables([malformed, unknown, twice])
    notes = published_count(rows.num_rows, _IMAGES, "imagelist.tsv") if split == "train" else ()
    return Plan(rows, tuple(names), FileReader(source / "images"), problems, notes)


def _without_header(lines: pa.ChunkedArray) -> pa.ChunkedArray:
    first = lines[0].as_py() if len(lines) else ""
    return lines.slice(1) if first.split("\t")[0] in _HEADERS else lines


def _entries(file: Path) -> tuple[pa.Table, pa.Table]:
    """Returns `source` and `verified` (null where the list has no such column)."""
    lines = _without_header(read_lines(file))
    parts = pc.extract_regex(lines, r"^(?P<source>[^/\t]+/[^\t]+)(?:\t(?P<verified>[01]))?$")
    bad = pc.is_null(parts)
    problems = PROBLEMS.empty_table()
    if pc.any(bad).as_py():
        detail = f"a line of {file.name} that is not CLASS/IMAGE"
        problems = problem_table(lines.filter(bad), Problem.MALFORMED, detail)
        parts = parts.filter(pc.invert(bad))
    verified = pc.struct_field(parts, "verified")
    verified = pc.if_else(pc.equal(verified, ""), pa.scalar(None, pa.string()), verified)
    columns = {"source": pc.struct_field(parts, "source"), "verified": verified.cast(pa.int8())}
    return pa.table(columns), problems
