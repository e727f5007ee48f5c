"""Labels and class names as tables have them: numbers from anywhere, or names.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.plan import PROBLEMS, Problem, check_labels, refuse_rows

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "category", "class_name", "class_id")
_INTEGER = r"^[+-]?\d{1,18}$"


def choose_column(
    names: Sequence[str], given: str | None, usual: Sequence[str], what: str, file: Path
) -> str:
    """Returns the column that was asked for, or the first usual name that is there.

    Raises:
        DataError: There is none; the message lists the columns.
    """
    flag = f"--{what}-column"
    if given is not None:
        if given in names:
            return given
        raise DataError(f"{file}: no column {given!r} (has: {', '.join(names)}); see {flag}")
    lower = {name.lower(): name for name in names}
    for name in usual:
        if name in lower:
            return lower[name]
    raise DataError(
        f"{file}: which column holds the {what}? It has: {', '.join(names)}. Say it with {flag}"
    )


def resolve(
    rows: pa.Table, *, names: Sequence[str] | None, first_label: int, where: Path
) -> tuple[pa.Table, tuple[str, ...], pa.Table, tuple[str, ...]]:
    """Turns the column `label` of any type into class numbers.

    Whole numbers are class numbers, counted from `first_label`; -1 means that there is none, as
    `datasets` writes it. Text is a class name, unless all of it is whole numbers.

    Args:
        rows: With `source` and `label`.
        names: Class names; None: the numbers themselves, or the sorted set of the names found.
        first_label: The number of the first class.
        where: The file, for messages.

    Returns:
        Good rows with i32 labels, the classes, problems and notes.

    Raises:
        LabelError: The labels are of a type that cannot be one, or too large to be class numbers.
    """
    given = rows.column("label")
    if pa.types.is_dictionary(given.type):
        given = given.cast(given.type.value_type)
    if _is_text(given.type):
        given = pc.utf8_trim_whitespace(given.cast(pa.string()))
        given = pc.if_else(pc.equal(given, ""), pa.scalar(None, pa.string()), given)
        if not _all_integers(given) or (names is not None and _are_names(given, names)):
            return _by_name(rows, given, names, where)
        given = pc.cast(pc.replace_substring_regex(given, r"^\+", ""), pa.int64())
    labels = _whole(given, where)
    labels = pc.if_else(pc.equal(labels, -1), pa.scalar(None, pa.int64()), labels)
    return _checked(rows, pc.subtract(labels, first_label), names, where, PROBLEMS.empty_table())


def _by_name(
    rows: pa.Table, given: pa.ChunkedArray, names: Sequence[str] | None, where: Path
) -> tuple[pa.Table, tuple[str, ...], pa.Table, tuple[str, ...]]:
    names = sorted(pc.unique(given.drop_null()).to_pylist()) if names is None else names
    labels = pc.index_in(given, value_set=pa.array(names, pa.string())).cast(pa.int64())
    strange_N = pc.and_(pc.is_valid(given), pc.is_null(labels)).to_numpy()
    _, unknown = refuse_rows(
        rows.append_column("given", given),
        strange_N,
        Problem.LABEL_OUTSIDE,
        "{given!r} is not one of the class names",
    )
    known = pa.array(~strange_N)
    return _checked(rows.filter(known), labels.filter(known), names, where, unknown)


def name_classes(names: Sequence[str], where: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Makes class names that can be told from class numbers.

    Returns:
        The names, and a note where some had to be changed.

    Raises:
        LabelError: A name is empty, has a line break, or is there twice.
    """
    cleaned = [name.strip() for name in names]
    counts = Counter(cleaned)
    for name, count in counts.items():
        if not name or count > 1 or "\n" in name or "\r" in name:
            raise LabelError(
                f"{where}: the class name {name!r} is empty, two lines, or twice there"
            )
    moved = [name for i, name in enumerate(cleaned) if _is_integer(name) and name != str(i)]
    if not moved:
        return tuple(cleaned), ()
    # A class that is called by a number other than its own could be read either way.
    note = (
        f"classes are called by numbers that are not 0 to K - 1: {moved[0]} is class "
        f"{cleaned.index(moved[0])}, named class-{moved[0]}"
    )
    return tuple(f"class-{name}" if _is_integer(name) else name for name in cleaned), (note,)


def _checked(
    rows: pa.Table,
    labels: pa.ChunkedArray,
    names: Sequence[str] | None,
    where: Path,
    unknown: pa.Table,
) -> tuple[pa.Table, tuple[str, ...], pa.Table, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if names is None:
        largest = pc.max(labels).as_py()
        if largest is None:
            raise LabelError(f"{where}: no row has a label")
        if largest >= max(1000, rows.num_rows):
            raise LabelError(
                f"{where}: the largest label is {largest:,}, which would make {largest + 1:,} "
                f"classes of {rows.num_rows:,} rows; is it the right column? See --label-column"
            )
        if (smallest := pc.min(labels).as_py()) > 0:
            notes = (
                f"the smallest label is {smallest}, so class 0 has no sample; if that is the first "
                f"class, give --first-label {smallest}",
            )
        names = [str(label) for label in range(max(largest, 0) + 1)]
    classes, renamed = name_classes(names, where)
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", labels)
    good, bad = check_labels(rows, classes, where=where.name)
    return good, classes, pa.concat_tables([unknown, bad]), (*notes, *renamed)


def _whole(labels: pa.ChunkedArray, where: Path) -> pa.ChunkedArray:
    kind = labels.type
    if pa.types.is_null(kind):
        return labels.cast(pa.int64())
    if pa.types.is_floating(kind):
        labels = pc.if_else(pc.is_nan(labels), pa.scalar(None, kind), labels)
    elif not pa.types.is_integer(kind):
        raise LabelError(f"{where}: labels are {kind}, not names or whole numbers")
    try:
        return labels.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise LabelError(f"{where}: labels are not whole numbers: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _all_integers(given: pa.ChunkedArray) -> bool:
    matches = pc.match_substring_regex(given.drop_null(), _INTEGER)
    return bool(np.all(matches.to_numpy()))


def _are_names(given: pa.ChunkedArray, names: Sequence[str]) -> bool:
    return bool(pc.all(pc.is_in(given.drop_null(), pa.array(names, pa.string()))).as_py())


def _is_integer(name: str) -> bool:
    return name.lstrip("+-").isdigit() and name.isascii()
