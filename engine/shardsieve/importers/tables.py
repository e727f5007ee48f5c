"""Images inside the rows of Arrow and parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from shardsieve.errors import DataError
from shardsieve.importers.arrays import stat_files
from shardsieve.importers.files import FileReader, picture
from shardsieve.importers.plan import Picture, Problem, Refused

IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")
# Rows of a parquet file that are unpacked at a time.
_BATCH = 64


class TableReader:
    """Reads rows by `file` and `position` from tables with encoded images.

    A value is the bytes, or a struct of `bytes` and `path` as `datasets` has it; without bytes the
    path is opened, relative ones below the folder of the source.
    """

    def __init__(self, files: Sequence[Path], column: str, base: Path) -> None:
        self._files = list(files)
        self._column = column
        self._beside = FileReader(base)

    def fingerprint(self, rows: pa.Table) -> str:
        """Hashes size and time of change of the files."""
        return stat_files(self._files, rows)

    def images(self, rows: pa.Table) -> Iterator[Picture | Refused]:
        """Yields the images; rows come in the order of the files."""
        file_N = rows.column("file").to_numpy()
        position_N = rows.column("position").to_numpy()
        starts = np.flatnonzero(np.diff(file_N, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(file_N)], strict=True):
            positions = position_N[start:end].tolist()
            for value in _values(self._files[file_N[start]], self._column, positions):
                yield self._picture(value)

    def _picture(self, value: Any) -> Picture | Refused:
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if value is not None:
            return picture(value)
        if path:
            return self._beside.read(path)
        return Refused(Problem.MISSING, "the row has neither bytes nor a path")


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """Reads some columns of a table whole.

    Raises:
        DataError: It is damaged.
    """
    try:
        if file.suffix == ".parquet":
            return parquet.read_table(file, columns=list(columns), partitioning=None)
        batches = [batch.select(list(columns)) for batch in _arrow_batches(file)]
        return pa.Table.from_batches(batches, _arrow_schema(file, columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as a table: {error}") from error


def read_schema(file: Path) -> pa.Schema:
    """Reads the columns of a parquet file or an Arrow stream or file.

    Raises:
        DataError: It is neither.
    """
    try:
        if file.suffix == ".parquet":
            return parquet.read_schema(file)
        with pa.memory_map(str(file)) as source:
            return _open_arrow(source).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: not a {file.suffix[1:]} table: {error}") from error


def table_rows(files: Sequence[Path], base: Path, label_column: str) -> pa.Table:
    """Makes `source` (`FILE#ROW`), `file`, `position` and `label` for all rows of some files."""
    parts = []
    for number, file in enumerate(files):
        labels = read_columns(file, [label_column]).column(0)
        position_N = np.arange(len(labels), dtype=np.int64)
        name = str(file.relative_to(base)) if file.is_relative_to(base) else file.name
        sources = pa.compute.binary_join_element_wise(
            pa.array([name]).take(pa.array(np.zeros(len(labels), np.int64))),
            pa.array(position_N).cast(pa.string()),
            "#",
        )
        columns = {
            "source": sources,
            "file": np.full(len(labels), number, np.int32),
            "position": position_N,
            "label": labels,
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts, promote_options="permissive")


def image_columns(schema: pa.Schema) -> list[str]:
    """Names the columns that can hold encoded images."""
    return [field.name for field in schema if _holds_images(field.type)]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_binary(kind.field(position).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _values(file: Path, column: str, positions: list[int]) -> Iterator[Any]:
    """Yields the values at ascending positions, a few rows in memory at a time."""
    wanted = iter(positions)
    position = next(wanted)
    for start, values in _pieces(file, column, positions[0], positions[-1]):
        while position < start + len(values):
            yield values[position - start].as_py()
            following = next(wanted, None)
            if following is None:
                return
            position = following
    raise DataError(f"{file}: ends before row {position:,}; it changed since its labels were read")


def _pieces(file: Path, column: str, first: int, last: int) -> Iterator[tuple[int, pa.Array]]:
    start = 0
    if file.suffix != ".parquet":
        for batch in _arrow_batches(file):
            if start + len(batch) > first:
                yield start, batch.column(column)
            start += len(batch)
        return
    with parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if start + rows > first and start <= last:
                inside = start
                for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[column]):
                    yield inside, batch.column(0)
                    inside += len(batch)
            start += rows


def _arrow_batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source:
        reader = _open_arrow(source)
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader


def _arrow_schema(file: Path, columns: Sequence[str]) -> pa.Schema:
    schema = read_schema(file)
    return pa.schema([schema.field(name) for name in columns])


def _open_arrow(source: pa.MemoryMappedFile) -> Any:
    # `datasets` writes streams; others write files, which begin with these bytes.
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
