"""clean.idx: where the clean samples lie in the original shards, in 20 bytes a sample.

Shapes: N samples of the subset, S shards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.index import SampleIndex, ShardRef
from shardsieve.data.table import column, read_ipc, write_ipc
from shardsieve.errors import DataError

FILE = "clean.idx"
_SCHEMA = pa.schema([("shard", pa.int32()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True, slots=True)
class Subset:
    """Samples of some shards, by the bytes that they span, headers included.

    Attributes:
        shards: The S shards; their counts are those of all samples.
        shard_N: (N,) i32, ascending.
        offset_N: (N,) i64, ascending within a shard.
        size_N: (N,) i64, bytes.
    """

    shards: tuple[ShardRef, ...]
    shard_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard_N)

    @classmethod
    def open(cls, file: Path) -> Subset:
        """Maps the file.

        Raises:
            DataError: It is no such file.
        """
        try:
            table = read_ipc(file)
            about = json.loads((table.schema.metadata or {})[b"shards"])
        except (DataError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise DataError(
                f"{file}: not an index of clean samples; run `shardsieve select` again"
            ) from error
        shards = tuple(ShardRef.from_json(row) for row in about)
        return cls(shards, *(column(table, name) for name in _SCHEMA.names))


def write_subset(file: Path, index: SampleIndex, rows: npt.NDArray[np.int64]) -> None:
    """Writes the place of some samples, whole or not at all.

    Args:
        file: The file.
        index: All samples.
        rows: (N,) the samples of the subset, ascending.
    """
    shards = json.dumps([ref.to_json() for ref in index.shards])
    table = pa.table(
        {name: pa.array(index.numbers(name)[rows]) for name in _SCHEMA.names}, schema=_SCHEMA
    )
    write_ipc(file, table.replace_schema_metadata({"shards": shards}))
