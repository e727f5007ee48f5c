"""What will be imported, row by row, and what will not, with the reason.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.errors import LabelError

PROBLEMS = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# Columns that say where a row is read; every other column goes into the sample's JSON.
PLACE = ("source", "label", "file", "position")


class Problem(StrEnum):
    """Why an entry of the source is not in the shards."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_AN_IMAGE = "not_an_image"
    NO_LABEL = "no_label"
    LABEL_OUTSIDE = "label_outside"
    MALFORMED = "malformed_line"
    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image.

    Attributes:
        data: Its bytes, as they lie in the source.
        extension: By what the bytes are, not by what the file is called.
    """

    data: bytes
    extension: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An image that cannot be had, and why."""

    reason: Problem
    detail: str


class Reader(Protocol):
    """Fetches the images of rows of a plan; used by several threads at once."""

    def fingerprint(self, rows: pa.Table) -> str:
        """Returns what changes when the images of the rows change: sizes and times of files."""
        ...

    def images(self, rows: pa.Table) -> Iterator[Picture | Refused]:
        """Yields one image, or why there is none, for each row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A data set, ready to be written.

    Attributes:
        rows: `source` (text: where the image lies, for people and for files the path), `label`
            (i32 in [0, K)), for images inside larger files `file` (i32) and `position` (i64), and
            anything else that belongs into the sample's JSON.
        classes: K names.
        reader: Fetches the images.
        problems: What was found wrong before any image was read.
        notes: Sentences for the user.
    """

    rows: pa.Table
    classes: tuple[str, ...]
    reader: Reader
    problems: pa.Table = field(default_factory=PROBLEMS.empty_table)
    notes: tuple[str, ...] = ()


def problem_table(
    sources: pa.ChunkedArray | pa.Array | Sequence[str], reason: Problem, details: Any
) -> pa.Table:
    """Makes problem rows of one reason; `details` is one sentence, or one per source."""
    count = len(sources)
    if isinstance(details, str):
        details = pa.array([details]).take(pa.array(np.zeros(count, np.int64)))
    columns = {
        "source": sources,
        "reason": pa.array([reason.value]).take(pa.array(np.zeros(count, np.int64))),
        "detail": details,
    }
    return pa.table(columns, schema=PROBLEMS)


def refuse_rows(
    rows: pa.Table, bad_N: npt.NDArray[np.bool_], reason: Problem, detail: str
) -> tuple[pa.Table, pa.Table]:
    """Takes rows out of a table.

    Args:
        rows: With `source`.
        bad_N: (N,) which ones.
        reason: Why.
        detail: A sentence; `{column}` stands for the row's value in that column.

    Returns:
        The other rows, and the problems.
    """
    if not bad_N.any():
        return rows, PROBLEMS.empty_table()
    bad = rows.filter(pa.array(bad_N))
    details = [detail.format(**row) for row in bad.to_pylist()]
    problems = problem_table(bad.column("source"), reason, pa.array(details, pa.string()))
    return rows.filter(pa.array(~bad_N)), problems


def refuse_repeats(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Keeps the first of the rows that name the same source; the others become problems.

    A repeat with another label is a contradiction: the first label stands, as it would in a file
    that is read from the top.
    """
    encoded = rows.column("source").combine_chunks().dictionary_encode()
    code_N = encoded.indices.to_numpy()
    # Codes are given in order of appearance, so the first row of each is where it is new.
    _, first_of_code = np.unique(code_N, return_index=True)
    first_N = first_of_code[code_N]
    repeat_N = first_N != np.arange(len(code_N))
    if not repeat_N.any():
        return rows, PROBLEMS.empty_table()
    label_N = rows.column("label").to_numpy()
    other_N = repeat_N & (label_N != label_N[first_N])
    first_label = pa.array(label_N[first_N])
    rows_ = rows.append_column("first_label", first_label)
    _, contradictions = refuse_rows(
        rows_, other_N, Problem.CONTRADICTION,
        "listed before with label {first_label}, which stands; here with {label}",
    )  # fmt: skip
    _, duplicates = refuse_rows(
        rows_, repeat_N & ~other_N, Problem.DUPLICATE, "listed before with the same label"
    )
    problems = pa.concat_tables([duplicates, contradictions])
    return rows.filter(pa.array(~repeat_N)), problems


def check_labels(
    rows: pa.Table, classes: Sequence[str], *, where: str
) -> tuple[pa.Table, pa.Table]:
    """Takes out rows whose label is null or outside [0, K).

    Args:
        rows: With `source` and `label` (any integer type, null where there is none).
        classes: K names.
        where: The file that the labels come from, for the message.

    Returns:
        The good rows with i32 labels, and the problems.

    Raises:
        LabelError: The labels run from 1 to K: they are counted from one.
    """
    labels = rows.column("label").cast(pa.int64())
    absent_N = pc.is_null(labels).to_numpy()
    label_N = pc.fill_null(labels, -1).to_numpy()
    n_classes = len(classes)
    present = label_N[~absent_N]
    if len(present) and present.min() == 1 and present.max() == n_classes:
        raise LabelError(
            f"{where}: labels run from 1 to {n_classes} and there are {n_classes} classes, so they "
            "are counted from one. Give --first-label 1 where a layout takes it, or subtract one"
        )
    outside_N = ~absent_N & ((label_N < 0) | (label_N >= n_classes))
    _, no_label = refuse_rows(rows, absent_N, Problem.NO_LABEL, f"no label in {where}")
    _, outside = refuse_rows(
        rows, outside_N, Problem.LABEL_OUTSIDE,
        f"the label is {{label}} and there are {n_classes} classes",
    )  # fmt: skip
    good = rows.filter(pa.array(~(absent_N | outside_N)))
    position = good.schema.get_field_index("label")
    good = good.set_column(position, "label", good.column("label").cast(pa.int32()))
    return good, pa.concat_tables([no_label, outside])
