"""A table of image paths and labels: CSV, TSV, JSON lines or parquet.

Relative paths are looked up beside the table. Labels are whole numbers or class names.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pyarrow import json as arrow_json

from shardsieve.errors import DataError
from shardsieve.importers.columns import LABEL_NAMES, choose_column, resolve
from shardsieve.importers.files import FileReader
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import refuse_mostly_absent, wrong_layout
from shardsieve.importers.plan import PROBLEMS, Plan, Problem, refuse_repeats, refuse_rows
from shardsieve.importers.tables import read_columns, read_schema
from shardsieve.shards.labels import read_classes

_EXPECTED = "a .csv, .tsv, .jsonl or .parquet file with a column of image paths and one of labels"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PATH_NAMES = (
    *("path", "file", "file_name", "filename", "filepath", "file_path", "image", "img"),
    *("image_path", "image_id"),
)


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Reads the two columns.

    Raises:
        DataError: The file is no such table, or most of its images are not there.
        LabelError: The labels cannot be class numbers or names.
    """
    table = _read(kind, source, options)
    rows, unnamed = refuse_rows(
        table.append_column("number", pa.array(range(table.num_rows), pa.int64())),
        pc.is_null(table.column("source")).to_numpy(),
        Problem.MALFORMED,
        "row {number} names no image",
    )
    rows = rows.drop_columns(["number"])
    names = read_classes(options.classes) if options.classes else None
    rows, classes, unusable, notes = resolve(
        rows, names=names, first_label=options.first_label or 0, where=source
    )
    rows, repeats = refuse_repeats(rows)
    refuse_mostly_absent(source.parent, rows.column("source"), kind, _EXPECTED)
    problems = pa.concat_tables([PROBLEMS.empty_table(), unnamed, unusable, repeats])
    return Plan(rows, classes, FileReader(source.parent), problems, notes)


def _read(kind: str, source: Path, options: Options) -> pa.Table:
    if not source.is_file():
        found = "it is a folder" if source.is_dir() else "there is no such file"
        raise wrong_layout(source, kind, found, _EXPECTED)
    suffix = source.suffix.lower()
    try:
        if suffix in _DELIMITERS:
            table = _read_csv(source, _DELIMITERS[suffix])
        elif suffix in (".jsonl", ".ndjson"):
            table = arrow_json.read_json(source)
        elif suffix == ".parquet":
            path, label = _columns(read_schema(source).names, source, options)
            table = read_columns(source, [path, label])
        else:
            raise wrong_layout(source, kind, f"a {suffix or 'nameless'} file", _EXPECTED)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{source}: not a {suffix[1:]} table: {error}") from error
    path, label = _columns(table.column_names, source, options)
    paths = table.column(path)
    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        raise DataError(f"{source}: column {path} is {paths.type}, not paths")
    paths = pc.utf8_trim_whitespace(paths.cast(pa.string()))
    paths = pc.if_else(pc.equal(paths, ""), pa.scalar(None, pa.string()), paths)
    return pa.table({"source": paths, "label": table.column(label)})


def _read_csv(source: Path, delimiter: str) -> pa.Table:
    """Reads all columns as text: a label 007 and a path 00017 stay what they are."""
    parse = csv.ParseOptions(delimiter=delimiter)
    with csv.open_csv(source, parse_options=parse) as reader:
        names = reader.schema.names
    types = csv.ConvertOptions(column_types={name: pa.string() for name in names})
    return csv.read_csv(source, parse_options=parse, convert_options=types)


def _columns(names: list[str], source: Path, options: Options) -> tuple[str, str]:
    path = choose_column(names, options.image_column, _PATH_NAMES, "image", source)
    others = [name for name in names if name != path]
    return path, choose_column(others, options.label_column, LABEL_NAMES, "label", source)
