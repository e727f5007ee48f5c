"""Labels as given: where they stand, and which class each of them means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from shardsieve.data.reason import Reason
from shardsieve.errors import LabelError

TABLE_SUFFIXES = (".parquet", ".csv")
_INTEGER = r"^\s*[+-]?\d+\s*$"


class Given(NamedTuple):
    """A label as it stands in the data.

    Attributes:
        text: What was found, None when there is none.
        is_name: True when it is a class name even if it looks like a number.
        detail: What is wrong when there is none.
    """

    text: str | None
    is_name: bool = False
    detail: str | None = None


class LabelSource(Protocol):
    """Finds the label of a sample in one of its members.

    Attributes:
        extension: Of that member.
    """

    extension: str

    def read(self, content: bytes, name: str) -> Given:
        """Returns the label that a member holds; `name` is for messages about it."""
        ...


class MemberLabels:
    """The label is the whole content of a member, such as `0007.cls`."""

    def __init__(self, extension: str) -> None:
        self.extension = extension

    def read(self, content: bytes, name: str) -> Given:
        """Returns the content as text."""
        text = content.decode("utf-8-sig", "backslashreplace").strip()
        return Given(text) if text else Given(None, detail=f"{name} is empty")


class JsonLabels:
    """The label is a field of the `.json` member."""

    extension = "json"

    def __init__(self, path: str) -> None:
        self.path = path.split(".")

    def read(self, content: bytes, name: str) -> Given:
        """Returns the field; a JSON string is a class name, a JSON number an index."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            return Given(None, detail=f"{name} is not JSON: {error}")
        for part in self.path:
            if not isinstance(value, dict) or part not in value:
                return Given(None, detail=f"{name} has no field {'.'.join(self.path)}")
            value = value[part]
        return _from_value(value, name)


class TableLabels:
    """The label stands in a `key, label` table beside the shards."""

    def __init__(self, path: Path) -> None:
        table = _read_table(path)
        absent = [name for name in ("key", "label") if name not in table.column_names]
        if absent:
            raise LabelError(
                f"{path}: no column {' and no column '.join(absent)} "
                f"(has: {', '.join(table.column_names)}). "
                "A label table needs the columns key and label"
            )
        self.path = path
        keys, labels = table.column("key"), table.column("label")
        if pa.types.is_dictionary(labels.type):
            labels = labels.cast(labels.type.value_type)
        self._names = pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
        given = pc.not_equal(labels, "") if self._names else pc.is_valid(labels)
        labels = labels.filter(given)
        self._labels = (labels if self._names else _whole_numbers(labels, path)).combine_chunks()
        self._keys = _as_text(keys.filter(given), path).combine_chunks()
        self._refuse_contradictions()

    def of_keys(self, keys: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
        """Returns the labels of the keys as text, null where the table has no such key."""
        positions = pc.index_in(keys, value_set=self._keys)
        return self._labels.take(positions).cast(pa.string()), self._names

    def _refuse_contradictions(self) -> None:
        columns = {"key": self._keys, "label": self._labels}
        pairs = pa.table(columns).group_by("key").aggregate([("label", "count_distinct")])
        twice = pairs.filter(pc.greater(pairs.column("label_count_distinct"), 1))
        if twice.num_rows:
            raise LabelError(
                f"{self.path}: {twice.num_rows:,} keys have more than one label, the first is "
                f"{twice.column('key')[0].as_py()!r}. Leave one line per key"
            )


def names_table(spec: str) -> bool:
    """Whether a `labels` setting is the path of a table."""
    return not spec.startswith("json:") and spec.lower().endswith(TABLE_SUFFIXES)


def label_source(spec: str) -> MemberLabels | JsonLabels | TableLabels:
    """Reads a setting such as `cls`, `json:label` or `labels.parquet`.

    Raises:
        LabelError: The table is missing or is no table.
    """
    if spec.startswith("json:"):
        return JsonLabels(spec.removeprefix("json:"))
    if names_table(spec):
        return TableLabels(Path(spec))
    return MemberLabels(spec.lower().removeprefix("."))


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads class names from a JSON list or from a text file with one name a line.

    Raises:
        LabelError: The file is missing, is no list of names, or names a class twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"{path}: cannot read the class names: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: the class names are not UTF-8 text: {error}") from error
    if path.suffix == ".json":
        try:
            names = json.loads(text)
        except ValueError as error:
            raise LabelError(f"{path}: not JSON: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise LabelError(f'{path}: a JSON list of names is needed, such as ["cat", "dog"]')
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise LabelError(f"{path}: names no class")
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise LabelError(f"{path}: the class {again!r} is named twice")
    return tuple(names)


def find_classes(
    given: pa.ChunkedArray,
    is_name: pa.ChunkedArray,
    n_readable: int,
    n_classes: int | None,
    count: pa.ChunkedArray | None = None,
) -> tuple[str, ...]:
    """Works out the classes when the user names none.

    Integers give the classes 0 to their maximum (or `n_classes`), names their sorted set.

    Args:
        given: Labels as given, null where there is none.
        is_name: Whether a label is a name even if it looks like a number.
        n_readable: How many samples there are.
        n_classes: The number of classes, if it is known.
        count: How often each of `given` occurs; default: once.

    Raises:
        LabelError: Both occur, there is no label at all, or the largest integer cannot be a class
            index of this many samples.
    """
    present = pc.is_valid(given)
    integers = pc.and_(present, _looks_like_index(given, is_name))
    other = pc.and_(present, pc.invert(integers))
    numbers, names = given.filter(integers), given.filter(other)
    if len(numbers) and len(names):
        n_numbers, n_names = (
            len(given.filter(mask)) if count is None else pc.sum(count.filter(mask)).as_py()
            for mask in (integers, other)
        )
        raise LabelError(
            f"labels are mixed: {n_numbers:,} integers such as {numbers[0].as_py()!r} and "
            f"{n_names:,} names such as {names[0].as_py()!r}. "
            "Give the class names with --classes, then both are understood"
        )
    if n_classes is not None and not len(names):
        return tuple(str(label) for label in range(n_classes))
    if len(names):
        return tuple(sorted(pc.unique(names).to_pylist()))
    if not len(numbers):
        raise LabelError(
            "no sample has a label. Say where labels stand with --labels: "
            "cls, json:FIELD, or a parquet or CSV table with the columns key and label"
        )
    largest = int(_integers(numbers).max())
    if largest >= max(1000, n_readable):
        raise LabelError(
            f"the largest label is {largest:,}, which would make {largest + 1:,} classes of "
            f"{n_readable:,} samples. Name the classes with --classes, or their number with "
            "--set index.n_classes=K, and labels outside are listed"
        )
    return tuple(str(label) for label in range(max(largest, 0) + 1))


def resolve_labels(
    given: pa.ChunkedArray, is_name: pa.ChunkedArray, classes: Sequence[str]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Turns labels as given into class numbers.

    An integer is a class number, a name a class name; a name that is an integer and no class's
    name, such as a quoted number in JSON, is a number, too.

    Returns:
        (N,) i32 in [0, K) or -1, and (N,) u8 `Reason`: KEPT, NO_LABEL or LABEL_OUTSIDE.

    Raises:
        LabelError: Labels are integers and class names are other integers, so that a label can be
            read either way.
    """
    by_name = pc.fill_null(pc.index_in(given, value_set=pa.array(classes, pa.string())), -1)
    label_N = by_name.to_numpy().astype(np.int64)
    index_like = _looks_like_index(given, is_name).to_numpy()
    numbered = [(name, i) for i, name in enumerate(classes) if re.match(_INTEGER, name)]
    moved = [(name, i) for name, i in numbered if name != str(i)]
    if moved and index_like.any():
        name, position = moved[0]
        raise LabelError(
            f"class {position} is named {name!r}, so a label {name} could be the class of that "
            "name or of that number. Name the classes otherwise, or number them in order"
        )
    if not numbered:
        unnamed = pc.fill_null(pc.match_substring_regex(given, _INTEGER), False).to_numpy()
        index_like |= unnamed & (label_N < 0)
    label_N[index_like] = _integers(given.filter(pa.array(index_like)))
    present = pc.is_valid(given).to_numpy()
    outside = present & ((label_N < 0) | (label_N >= len(classes)))
    label_N[outside | ~present] = -1
    reason_N = np.where(
        present, np.where(outside, Reason.LABEL_OUTSIDE, Reason.KEPT), Reason.NO_LABEL
    )
    return label_N.astype(np.int32), reason_N.astype(np.uint8)


def _looks_like_index(given: pa.ChunkedArray, is_name: pa.ChunkedArray) -> pa.ChunkedArray:
    matches = pc.fill_null(pc.match_substring_regex(given, _INTEGER), False)
    return pc.and_(matches, pc.invert(is_name))


def _integers(texts: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    # More than 18 digits would overflow; such a label is outside any set of classes.
    short = pc.if_else(pc.greater(pc.utf8_length(texts), 18), "-1", pc.utf8_trim_whitespace(texts))
    return pc.cast(pc.replace_substring_regex(short, r"^\+", ""), pa.int64()).to_numpy()


def _from_value(value: object, where: str) -> Given:
    if isinstance(value, str):
        # JSON can spell half a surrogate pair, which is no text.
        name = value.encode("utf-8", "backslashreplace").decode()
        return Given(name, is_name=True) if name else Given(None, detail=f"{where}: empty label")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float) and value.is_integer()):
        return Given(None, detail=f"{where}: the label {value!r} is neither a name nor an integer")
    return Given(f"{value:.0f}" if isinstance(value, float) else str(value))


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".csv":
            # Keys such as 00017 must not become numbers.
            options = csv.ConvertOptions(column_types={"key": pa.string()})
            return csv.read_csv(path, convert_options=options)
        return parquet.read_table(path)
    except OSError as error:
        raise LabelError(f"{path}: cannot read the label table: {error}") from error
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path}: not a {path.suffix[1:]} table: {error}") from error


def _as_text(keys: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    try:
        return keys.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LabelError(f"{path}: the keys are {keys.type}, not text") from error


def _whole_numbers(labels: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    try:
        if pa.types.is_temporal(labels.type) or pa.types.is_boolean(labels.type):
            raise pa.ArrowInvalid("neither a time nor true and false are class numbers")
        return labels.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LabelError(f"{path}: the labels are {labels.type}, not names or integers") from error
