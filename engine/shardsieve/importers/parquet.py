"""Parquet files with encoded images and labels.

SOURCE is a file, or a folder whose `.parquet` files are taken in the order of their paths. The
image column holds bytes, or a struct with `bytes`; labels are whole numbers or class names.
"""

from __future__ import annotations

from pathlib import Path

from shardsieve.errors import DataError
from shardsieve.importers.columns import LABEL_NAMES, choose_column, resolve
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import wrong_layout
from shardsieve.importers.plan import Plan
from shardsieve.importers.tables import (
    IMAGE_NAMES,
    TableReader,
    image_columns,
    read_schema,
    table_rows,
)
from shardsieve.shards.labels import read_classes

_EXPECTED = "a .parquet file, or a folder of them, with a column of image bytes and one of labels"


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Reads the label columns; images stay where they are.

    Raises:
        DataError: There is no parquet file, or its columns do not fit.
        LabelError: The labels cannot be class numbers or names.
    """
    if source.is_dir():
        files, base = sorted(source.rglob("*.parquet")), source
    else:
        files, base = [source], source.parent
    if not files or not files[0].is_file():
        found = "no .parquet file in it" if source.is_dir() else "there is no such file"
        raise wrong_layout(source, kind, found, _EXPECTED)
    image, label = columns_of(files[0], options)
    check_schemas(files, image, label)
    rows = table_rows(files, base, label)
    names = read_classes(options.classes) if options.classes else None
    rows, classes, problems, notes = resolve(
        rows, names=names, first_label=options.first_label or 0, where=files[0]
    )
    return Plan(rows, classes, TableReader(files, image, base), problems, notes)


def columns_of(file: Path, options: Options) -> tuple[str, str]:
    """Returns the image column and the label column of a table.

    Raises:
        DataError: It cannot be told which they are, or no column can hold images.
    """
    schema = read_schema(file)
    able = image_columns(schema)
    if not able:
        raise DataError(
            f"{file}: no column can hold images (bytes, or a struct with bytes); it has: "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
        )
    usual = able if len(able) == 1 else IMAGE_NAMES
    image = choose_column(able, options.image_column, usual, "image", file)
    others = [name for name in schema.names if name != image]
    return image, choose_column(others, options.label_column, LABEL_NAMES, "label", file)


def check_schemas(files: list[Path], image: str, label: str) -> None:
    """Makes sure that all files have both columns, of the first one's types.

    Raises:
        DataError: One has not.
    """
    first = read_schema(files[0])
    for file in files[1:]:
        schema = read_schema(file)
        for name in (image, label):
            position = schema.get_field_index(name)
            if position < 0 or not schema.field(position).type.equals(first.field(name).type):
                is_ = "none" if position < 0 else str(schema.field(position).type)
                raise DataError(
                    f"{file}: column {name} is {is_}, in {files[0].name} it is "
                    f"{first.field(name).type}. Import them one by one"
                )
