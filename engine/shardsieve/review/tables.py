"""Decisions as CSV: out for a spreadsheet, and back in."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardsieve.data.decision_log import DecisionLog
from shardsieve.data.decisions import Decision, locate_samples, read_decisions
from shardsieve.data.index import SampleIndex
from shardsieve.errors import DataError

COLUMNS = ("shard", "key", "offset", "decision", "label", "given", "time")
_NAMED_PROBLEMS = 5


def export_decisions(run: Path, file: Path) -> int:
    """Writes the decisions that stand, oldest first; empty cells where there is no value.

    Returns:
        How many.

    Raises:
        DataError: The decisions cannot be read, or the file cannot be written.
    """
    standing = read_decisions(run).standing
    try:
        with file.open("w", newline="", encoding="utf-8") as out:
            rows = csv.writer(out)
            rows.writerow(COLUMNS)
            for one in standing.values():
                rows.writerow([getattr(one, name) for name in COLUMNS])
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from error
    return len(standing)


def import_decisions(run: Path, index: SampleIndex, file: Path) -> int:
    """Takes over decisions from a CSV file, all of them or none.

    `key` and `decision` must be among the columns; `shard` tells samples apart that share a key.
    Later decisions about a sample replace earlier ones, here as in a review, and undo takes them
    back one by one.

    Args:
        run: The run directory.
        index: The samples of the run.
        file: What to read.

    Returns:
        How many were taken over.

    Raises:
        DataError: The file cannot be read, or a line is no decision about a sample of this run;
            the first such lines are named.
    """
    decisions = _read(file, index)
    located = locate_samples([one.sample for _, one in decisions], index)
    problems, complete = [], []
    for line, one in decisions:
        row = located.get(one.sample)
        if row is None:
            problems.append(f"line {line}: {one.key} is not here, or more than once")
        elif one.decision == "relabel" and one.label not in index.classes:
            problems.append(f"line {line}: {one.label} is no class")
        else:
            complete.append(one.model_copy(update=_full_name(one, row, index)))
    if problems:
        more = len(problems) - _NAMED_PROBLEMS
        tail = f"; {more} more" if more > 0 else ""
        named = "; ".join(problems[:_NAMED_PROBLEMS])
        raise DataError(f"{file}: {named}{tail}. Nothing was taken over")
    return DecisionLog(run).add(complete)


def _read(file: Path, index: SampleIndex) -> list[tuple[int, Decision]]:
    decisions = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = {"key", "decision"} - set(rows.fieldnames or ())
            if missing:
                raise DataError(f"{file}: no column {' and no column '.join(sorted(missing))}")
            for row in rows:
                given = {name: row[name] for name in COLUMNS if row.get(name)}
                try:
                    decisions.append((rows.line_num, Decision.model_validate(given)))
                except ValidationError as error:
                    what = error.errors()[0]["msg"]
                    raise DataError(f"{file}, line {rows.line_num}: {what}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8: {error}") from error
    return decisions


def _full_name(one: Decision, row: int, index: SampleIndex) -> dict[str, Any]:
    """What the review would have filed: the same sample must not have two names."""
    label = int(index.label_N[row])
    return {
        "shard": index.shards[int(index.numbers("shard")[row])].path.name,
        "offset": int(index.numbers("offset")[row]),
        "given": one.given or (index.classes[label] if label >= 0 else None),
    }
