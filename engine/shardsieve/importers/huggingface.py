"""A data set of Hugging Face's `datasets`, read with pyarrow alone.

```
save_to_disk:  SOURCE/dataset_dict.json {"splits": ["train", "test"]}, a folder per split with
               state.json {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
               and dataset_info.json; or one split's files directly in SOURCE
hub clone:     SOURCE/data/train-00000-of-00004.parquet, or .../train/0000.parquet
cache:         SOURCE/NAME-train-00000-of-00002.arrow
```

Column types, and with them the class names, stand in the files' metadata or `dataset_info.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardsieve.errors import DataError
from shardsieve.importers.columns import LABEL_NAMES, choose_column, resolve
from shardsieve.importers.layouts import Options
from shardsieve.importers.lists import need_folder, wrong_layout
from shardsieve.importers.parquet import check_schemas
from shardsieve.importers.plan import Plan
from shardsieve.importers.tables import (
    IMAGE_NAMES,
    TableReader,
    image_columns,
    read_schema,
    table_rows,
)

_EXPECTED = (
    "dataset_dict.json or state.json (save_to_disk), or parquet files named by their split, such "
    "as data/train-00000-of-00001.parquet"
)
_NAMED_FILE = re.compile(r"(?:.*?-)??(?P<split>\w+?)(?:-\d+-of-\d+)?\.(?:parquet|arrow)")
_NUMBERED_FILE = re.compile(r"\d+\.parquet")


def plan(kind: str, source: Path, options: Options) -> Plan:
    """Finds the files of a split and reads their labels.

    Raises:
        DataError: No data set is there, the split is not one of its, or its columns do not fit.
        LabelError: The labels cannot be class numbers or names.
    """
    need_folder(source, kind, _EXPECTED)
    files, folder = _files_of_split(kind, source, options.split)
    features = _features(files[0], folder)
    schema = read_schema(files[0])
    # A struct with bytes may be sound as well: the features say which are images.
    images = [name for name, kind_ in features.items() if kind_.get("_type") == "Image"]
    able = [name for name in images if name in schema.names] or image_columns(schema)
    usual: Sequence[str] = able if len(able) == 1 else IMAGE_NAMES
    image = choose_column(able, options.image_column, usual, "image", files[0])
    named = [name for name, kind_ in features.items() if kind_.get("_type") == "ClassLabel"]
    others = [name for name in schema.names if name != image]
    # Of several (CIFAR-100 has two) the user chooses.
    usual = LABEL_NAMES if not named else named if len(named) == 1 else ()
    label = choose_column(others, options.label_column, usual, "label", files[0])
    check_schemas(files, image, label)
    names = features.get(label, {}).get("names")
    rows = table_rows(files, source, label)
    rows, classes, problems, notes = resolve(rows, names=names, first_label=0, where=files[0])
    return Plan(rows, classes, TableReader(files, image, source), problems, notes)


def _files_of_split(kind: str, source: Path, split: str | None) -> tuple[list[Path], Path]:
    """Returns the tables of a split in order, and the folder with their `dataset_info.json`."""
    if (source / "dataset_dict.json").is_file():
        splits = _read_json(source / "dataset_dict.json").get("splits", [])
        folder = source / _choose(source, split, splits)
        return _saved(folder), folder
    if (source / "state.json").is_file():
        own = _read_json(source / "state.json").get("_split")
        if split not in (None, own):
            raise DataError(f"{source}: is one split, {own}; leave --split out")
        return _saved(source), source
    by_split: dict[str, list[Path]] = {}
    for file in sorted([*source.rglob("*.parquet"), *source.rglob("*.arrow")]):
        if any(part.startswith(".") for part in file.relative_to(source).parts):
            # A clone keeps its history and downloads there.
            continue
        if _NUMBERED_FILE.fullmatch(file.name):
            by_split.setdefault(file.parent.name, []).append(file)
        elif match := _NAMED_FILE.fullmatch(file.name):
            by_split.setdefault(match["split"], []).append(file)
    if not by_split:
        raise wrong_layout(source, kind, "no Arrow or parquet file in it", _EXPECTED)
    return by_split[_choose(source, split, list(by_split))], source


def _choose(source: Path, split: str | None, splits: list[str]) -> str:
    if split in splits:
        return split
    if split is None and len(splits) == 1:
        return splits[0]
    asked = f"no split {split!r}" if split else "several splits"
    raise DataError(f"{source}: {asked}; choose one with --split: {', '.join(splits)}")


def _saved(folder: Path) -> list[Path]:
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: is a selection of rows of larger files, as old versions of datasets saved "
            "it; load it, call flatten_indices() and save it again"
        )
    files = [folder / str(entry.get("filename")) for entry in state.get("_data_files", [])]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(f"{folder}: state.json names files that are not there: {missing}")
    return files


def _features(file: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the types of `datasets` by column; empty where nothing says them."""
    metadata = read_schema(file).metadata or {}
    features = None
    if b"huggingface" in metadata:
        try:
            features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features")
        except ValueError as error:
            raise DataError(f"{file}: its huggingface metadata are not JSON: {error}") from error
    info = folder / "dataset_info.json"
    if not features and info.is_file():
        features = _read_json(info).get("features")
    # Nested types are lists; no image or label is one.
    return {name: kind for name, kind in (features or {}).items() if isinstance(kind, dict)}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: a JSON object was expected")
    return content
