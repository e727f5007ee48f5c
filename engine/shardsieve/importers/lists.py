"""Text lists of images and labels, and what is said when files are not where a layout has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from shardsieve.errors import DataError
from shardsieve.importers.plan import PROBLEMS, Problem, problem_table

# Listed files that are looked for before anything is written.
_PROBED = 1000
_MOST_ABSENT = 0.25


def wrong_layout(source: Path, layout: str, found: str, expected: str) -> DataError:
    """Makes the error that names a wrong layout."""
    return DataError(f"{source} is not laid out as {layout}: {found}. Expected {expected}")


def need_folder(source: Path, layout: str, expected: str) -> None:
    """Makes sure that the source is a folder.

    Raises:
        DataError: It is not.
    """
    if not source.is_dir():
        found = "it is a file" if source.is_file() else "there is no such folder"
        raise wrong_layout(source, layout, found, expected)


def find_file(source: Path, name: str, folders: Sequence[str], layout: str, expected: str) -> Path:
    """Returns the first of `source/folder/name` that is there.

    Raises:
        DataError: None is; if a folder below has it, the message says which.
    """
    need_folder(source, layout, expected)
    for folder in folders:
        if (source / folder / name).is_file():
            return source / folder / name
    below = sorted(source.glob(f"*/{name}")) + sorted(source.glob(f"*/*/{name}"))
    hint = f", but {below[0]} is there" if below else ""
    raise wrong_layout(source, layout, f"no {Path(folders[0]) / name} in it{hint}", expected)


def find_base(source: Path, inside: str, bases: Sequence[str], layout: str, expected: str) -> Path:
    """Returns the first of `source/base` that holds the folder `inside`.

    Raises:
        DataError: None does.
    """
    for base in bases:
        if (source / base / inside).is_dir():
            return source / base
    looked = ", ".join(str(Path(base) / inside) for base in bases)
    raise wrong_layout(source, layout, f"no folder {looked} in it", expected)


def read_lines(path: Path) -> pa.ChunkedArray:
    """Reads the lines of a text file that are not empty, as one Arrow column.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        # A byte that no list contains as delimiter: each line is one value.
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=["line"]),
            parse_options=csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types={"line": pa.string()}, strings_can_be_null=False
            ),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except pa.ArrowInvalid as error:
        if path.stat().st_size == 0 or "Empty" in str(error):
            raise DataError(f"{path}: is empty") from error
        raise DataError(f"{path}: not a text list: {error}") from error
    lines = pc.utf8_trim_whitespace(table.column("line"))
    return lines.filter(pc.not_equal(lines, ""))


def read_pairs(path: Path) -> tuple[pa.Table, pa.Table]:
    """Reads a list of `image label` lines; the label is the last word.

    Returns:
        Columns `source` (text) and `label` (i64), and the lines that are no pair, as problems.
    """
    lines = read_lines(path)
    parts = pc.extract_regex(lines, r"^(?P<source>.*\S)\s+(?P<label>[+-]?\d{1,18})$")
    malformed = pc.is_null(parts)
    problems = PROBLEMS.empty_table()
    if pc.any(malformed).as_py():
        bad = lines.filter(malformed)
        detail = f"a line of {path.name} that is not a path and a whole number"
        problems = problem_table(bad, Problem.MALFORMED, detail)
        parts = parts.filter(pc.invert(malformed))
    labels = pc.struct_field(parts, "label")
    labels = pc.cast(pc.replace_substring_regex(labels, r"^\+", ""), pa.int64())
    return pa.table({"source": pc.struct_field(parts, "source"), "label": labels}), problems


def refuse_mostly_absent(base: Path, sources: pa.ChunkedArray, layout: str, expected: str) -> None:
    """Looks for some of the listed files, evenly spread, before anything is written.

    Raises:
        DataError: More than a quarter of them are not there: the images lie elsewhere.
    """
    count = len(sources)
    picked = sorted({position * count // _PROBED for position in range(min(_PROBED, count))})
    if count <= _PROBED:
        picked = list(range(count))
    absent = [
        name for name in sources.take(pa.array(picked)).to_pylist() if not (base / name).is_file()
    ]
    if picked and len(absent) > _MOST_ABSENT * len(picked):
        found = (
            f"{len(absent):,} of {len(picked):,} listed images that were looked for are not "
            f"there, such as {base / absent[0]}"
        )
        raise wrong_layout(base, layout, found, expected)


def published_count(found: int, published: int, what: str) -> tuple[str, ...]:
    """Returns a note when a list is not as long as its authors say."""
    if found == published:
        return ()
    return (f"{what} has {found:,} entries; {published:,} were published",)
