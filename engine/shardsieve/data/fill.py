"""An Arrow IPC file of known size that is filled piece by piece.

Its columns lie in one piece each, as the tables of a run do, without ever being in memory as a
whole: the file is first written as zeros, then each piece goes to its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.table import replace_file
from shardsieve.errors import DataError

_MOST_TEXT = 2**31 - 1


class TextSize(NamedTuple):
    """What must be known of a column of text beforehand.

    Attributes:
        n_bytes: Of all its values.
        n_nulls: Values that are absent.
    """

    n_bytes: int
    n_nulls: int


class ColumnFile:
    """Writes record batches one behind the other into the single batch of a file."""

    def __init__(
        self, path: Path, schema: pa.Schema, n_rows: int, texts: Mapping[str, TextSize]
    ) -> None:
        """Reserves the file.

        Args:
            path: The file; it appears when it is whole.
            schema: Columns of integers, without nulls, and of text.
            n_rows: How many rows will be appended.
            texts: Size of each column of text.

        Raises:
            DataError: The values of a column of text are more than 2 GB.
        """
        for name, size in texts.items():
            if size.n_bytes > _MOST_TEXT:
                raise DataError(
                    f"the values of the column {name} are {size.n_bytes:,} bytes, more than the "
                    "2 GB that it can hold; clean the shards in several runs"
                )
        self._path, self._schema, self._n_rows = path, schema, n_rows
        self._part = path.with_name(path.name + ".part")
        with pa.ipc.new_file(self._part, schema) as writer:
            writer.write_batch(_zeros(schema, n_rows, texts))
        self._places = _places(self._part)
        self._valid = {
            name: np.zeros(n_rows, np.bool_) for name, size in texts.items() if size.n_nulls
        }
        self._row = 0
        self._used = dict.fromkeys(texts, 0)
        self._file = os.open(self._part, os.O_RDWR)

    def append(self, batch: pa.RecordBatch) -> None:
        """Writes rows behind those that are there."""
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            place = self._places[name]
            if pa.types.is_string(values.type):
                self._append_text(name, values)
                continue
            numbers = values.to_numpy(zero_copy_only=True)
            self._write(numbers, place[1] + self._row * numbers.itemsize)
        self._row += batch.num_rows

    def _append_text(self, name: str, values: pa.StringArray) -> None:
        _, edges_at, bytes_at = self._places[name]
        if name in self._valid:
            valid = np.asarray(values.is_valid())
            self._valid[name][self._row : self._row + len(values)] = valid
        edges = np.frombuffer(values.buffers()[1], np.int32)
        edges = edges[values.offset : values.offset + len(values) + 1]
        low, high = int(edges[0]), int(edges[-1])
        if high > low:
            self._write(values.buffers()[2][low:high], bytes_at + self._used[name])
        shifted = (edges[1:].astype(np.int64) - low + self._used[name]).astype(np.int32)
        self._write(shifted, edges_at + 4 * (self._row + 1))
        self._used[name] += high - low

    def _write(self, values: Any, place: int) -> None:
        view = memoryview(values).cast("B")
        while len(view):
            written = os.pwrite(self._file, view, place)
            view, place = view[written:], place + written

    def __enter__(self) -> ColumnFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for name, valid in self._valid.items():
                    self._write(np.packbits(valid, bitorder="little"), self._places[name][0])
        finally:
            os.close(self._file)
        if error is None:
            if self._row != self._n_rows:
                raise ValueError(f"{self._row} rows were appended, not {self._n_rows}")
            replace_file(self._part, self._path)


def _zeros(schema: pa.Schema, n_rows: int, texts: Mapping[str, TextSize]) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if not pa.types.is_string(field.type):
            columns.append(pa.array(np.zeros(n_rows, field.type.to_pandas_dtype())))
            continue
        size = texts[field.name]
        # Arrow reads how much text there is from the last edge.
        edges = np.zeros(n_rows + 1, np.int32)
        edges[-1] = size.n_bytes
        valid = pa.py_buffer(np.zeros((n_rows + 7) // 8, np.uint8)) if size.n_nulls else None
        text = pa.py_buffer(np.zeros(size.n_bytes, np.uint8))
        buffers = [valid, pa.py_buffer(edges), text]
        columns.append(pa.Array.from_buffers(field.type, n_rows, buffers, size.n_nulls))
    return pa.record_batch(columns, schema=schema)


def _places(path: Path) -> dict[str, list[int]]:
    """Returns where the buffers of each column lie in a file, -1 for absent ones."""
    with pa.memory_map(str(path)) as source:
        start = source.read_buffer(source.size()).address
        batch = pa.ipc.open_file(source).get_batch(0)
        return {
            name: [-1 if buffer is None else buffer.address - start for buffer in values.buffers()]
            for name, values in zip(batch.schema.names, batch.columns, strict=True)
        }


def text_size(values: pa.StringArray) -> TextSize:
    """Returns what a piece of a column adds to the size of the whole."""
    edges: npt.NDArray[np.int32] = np.frombuffer(values.buffers()[1], np.int32)
    span = int(edges[values.offset + len(values)] - edges[values.offset])
    return TextSize(span, values.null_count)
