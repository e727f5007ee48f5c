"""FeatureStore: cached backbone features, one memory-mapped file per shard.

Shapes: N samples, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.table import column, read_ipc, write_ipc
from shardsieve.errors import DataError

_NAMES = ["feature", "reason", "detail"]
_SHA256 = b"sha256"
_ONE_SHARD_ANEW = "Delete it and run again: only this shard is embedded anew"


def shard_file(folder: Path, shard: int) -> Path:
    """Where the features of a shard lie."""
    return folder / f"features-{shard:06d}.arrow"


def write_shard(
    folder: Path,
    shard: int,
    features_ND: npt.NDArray[np.float16],
    reason_N: npt.NDArray[np.uint8],
    details: Sequence[str | None],
) -> None:
    """Writes the features of one shard, whole or not at all.

    Args:
        folder: Folder of the store.
        shard: Number of the shard in the index.
        features_ND: (N, D) f16, zeros where `reason_N` is not KEPT.
        reason_N: (N,) u8, `Reason` of each row after decoding.
        details: N sentences on what is wrong, None where nothing is.
    """
    dim = features_ND.shape[1]
    features_ND = np.ascontiguousarray(features_ND)
    values = pa.array(features_ND.reshape(-1), pa.float16())
    digest = _digest(features_ND, reason_N, details)
    table = pa.table(
        {
            "feature": pa.FixedSizeListArray.from_arrays(values, dim),
            "reason": pa.array(reason_N, pa.uint8()),
            "detail": pa.array(list(details), pa.string()),
        }
    )
    write_ipc(shard_file(folder, shard), table.replace_schema_metadata({_SHA256: digest}))


def check_shard(folder: Path, shard: int) -> int:
    """Reads the features of one shard and compares them with their checksum.

    Returns:
        How many rows it has.

    Raises:
        DataError: They are gone, or not what was written.
    """
    table = _read_shard(folder, shard)
    parts = _matrix(table, table.schema.field("feature").type.list_size)
    told = (table.schema.metadata or {}).get(_SHA256, b"").decode("ascii", "replace")
    details = table.column("detail").to_pylist()
    if _digest(parts, column(table, "reason"), details) != told:
        raise DataError(
            f"{shard_file(folder, shard)}: not what was written, its checksum differs. "
            + _ONE_SHARD_ANEW
        )
    return len(parts)


def _digest(
    features_ND: npt.NDArray[np.float16],
    reason_N: npt.NDArray[np.uint8],
    details: Sequence[str | None],
) -> str:
    digest = hashlib.sha256(repr(features_ND.shape).encode())
    digest.update(features_ND.view(np.uint8).data)
    digest.update(np.ascontiguousarray(reason_N, np.uint8).data)
    digest.update(json.dumps(list(details)).encode())
    return digest.hexdigest()


def _read_shard(folder: Path, shard: int) -> pa.Table:
    try:
        table = read_ipc(shard_file(folder, shard))
        table.validate()
    except (DataError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{shard_file(folder, shard)}: gone or damaged. {_ONE_SHARD_ANEW}"
        ) from error
    if table.schema.names != _NAMES:
        raise DataError(f"{shard_file(folder, shard)}: not a feature file. {_ONE_SHARD_ANEW}")
    return table


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features of all samples in index order, a file per shard.

    Attributes:
        parts: Per shard (n, D) f16, mapped.
        starts: (S + 1,) i64, first row of each shard, and N.
        reason_N: (N,) u8 after decoding.
        dim: D.
    """

    parts: tuple[npt.NDArray[np.float16], ...]
    starts: npt.NDArray[np.int64]
    reason_N: npt.NDArray[np.uint8]
    details: pa.ChunkedArray
    dim: int

    @classmethod
    def open(cls, folder: Path, n_shards: int) -> FeatureStore:
        """Maps the files that the stage `embed` wrote.

        Raises:
            DataError: A file is gone or damaged; what it holds is checked by `check_shard`.
        """
        tables = [_read_shard(folder, shard) for shard in range(n_shards)]
        dim = tables[0].schema.field("feature").type.list_size
        parts = tuple(_matrix(table, dim) for table in tables)
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        reason_N = np.concatenate([column(table, "reason") for table in tables])
        details = pa.chunked_array(
            [chunk for table in tables for chunk in table.column("detail").chunks], pa.string()
        )
        return cls(parts, starts, reason_N, details, dim)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Gathers rows in any order, touching every shard once.

        Args:
            rows: (B,) row numbers.

        Returns:
            (B, D) f16.
        """
        out = np.empty((len(rows), self.dim), np.float16)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        edges = np.searchsorted(ordered, self.starts)
        for shard in np.flatnonzero(np.diff(edges)):
            where = order[edges[shard] : edges[shard + 1]]
            out[where] = self.parts[shard][rows[where] - self.starts[shard]]
        return out

    def blocks(
        self, rows: npt.NDArray[np.int64], size: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        """Yields (row numbers, features) for consecutive pieces of `rows`.

        Memory is `size` x D x 2 bytes whatever the number of rows.
        """
        for start in range(0, len(rows), size):
            piece = rows[start : start + size]
            yield piece, self.take(piece)


def _matrix(table: pa.Table, dim: int) -> npt.NDArray[np.float16]:
    chunks = table.column("feature").chunks
    if not chunks:
        return np.empty((0, dim), np.float16)
    return chunks[0].flatten().to_numpy(zero_copy_only=True).reshape(-1, dim)
