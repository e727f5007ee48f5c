"""SampleIndex: the row order that every other table shares.

Shapes: N samples, S shards, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.location import ShardPath, shard_path
from shardsieve.data.reason import Reason
from shardsieve.data.table import column, read_ipc, write_json

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("label", pa.int32()),
        ("reason", pa.uint8()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One input shard.

    Attributes:
        path: Where it lies: an absolute path, or a URL.
        size_bytes: Size when it was indexed.
        mtime_ns: Modification time when it was indexed, nanoseconds; of a URL, a number that
            stands for its version.
        n_samples: Rows of the index that belong to it.
        other_members: Members that belong to no sample (folders, links, metadata).
        damage: What is wrong with the tar itself, one sentence each.
    """

    path: ShardPath
    size_bytes: int
    mtime_ns: int
    n_samples: int = 0
    other_members: int = 0
    damage: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ShardRef:
        """Reads what `to_json` wrote."""
        return cls(**{**row, "path": shard_path(row["path"]), "damage": tuple(row["damage"])})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
            "n_samples": self.n_samples,
            "other_members": self.other_members,
            "damage": list(self.damage),
        }


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """All samples of a run: shard by shard as given, inside a shard in the order of the tar.

    Attributes:
        table: N rows with the columns of `SCHEMA`; `offset` and `size` (bytes) span all members of
            the sample with their headers, `image_offset` and `image_size` the image's bytes;
            `reason` is not KEPT where the sample cannot be used, `label` -1 where it has none.
        shards: The S input shards.
        classes: The K class names.
    """

    table: pa.Table
    shards: tuple[ShardRef, ...]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> SampleIndex:
        """Maps the index that the stage `index` wrote."""
        about = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
        return cls(
            read_ipc(folder / "samples.arrow"),
            tuple(ShardRef.from_json(row) for row in about["shards"]),
            tuple(about["classes"]),
        )

    @staticmethod
    def write_shards(folder: Path, shards: tuple[ShardRef, ...], classes: tuple[str, ...]) -> None:
        """Writes what `open` reads beside `samples.arrow`."""
        rows = [shard.to_json() for shard in shards]
        write_json(folder / "shards.json", {"classes": list(classes), "shards": rows})

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def keys_N(self) -> pa.ChunkedArray:
        """Keys as WebDataset forms them: the member's path up to the first dot of its name."""
        return self.table.column("key")

    @property
    def label_N(self) -> npt.NDArray[np.int32]:
        """Labels as given, -1 where there is none."""
        return column(self.table, "label")

    def relabelled(self, label_N: npt.NDArray[np.int32]) -> SampleIndex:
        """Returns the same samples under other labels.

        Args:
            label_N: (N,) i32, -1 where there is none.
        """
        at = self.table.column_names.index("label")
        return replace(self, table=self.table.set_column(at, "label", pa.array(label_N)))

    @property
    def reason_N(self) -> npt.NDArray[np.uint8]:
        """`Reason` of each row as far as the index can know it."""
        return column(self.table, "reason")

    @property
    def readable_N(self) -> npt.NDArray[np.bool_]:
        """Rows that have an image and a label."""
        return self.reason_N == Reason.KEPT

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Returns a numeric column."""
        return column(self.table, name)

    def rows_of(self, shard: int) -> slice:
        """Returns the rows of one shard."""
        start = sum(ref.n_samples for ref in self.shards[:shard])
        return slice(start, start + self.shards[shard].n_samples)
