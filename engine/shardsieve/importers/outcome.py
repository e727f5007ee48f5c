"""What an import leaves beside its shards, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from shardsieve.data.table import count_words, replace_file, write_text
from shardsieve.importers.plan import PROBLEMS, Plan

# Formats that `index.image` looks for without being told.
_KNOWN = ("jpg", "png", "webp")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished import.

    Attributes:
        out: Its folder.
        shards: The tars, in order.
        samples: How many samples they hold.
        classes: How many classes there are.
        per_class: Samples of each.
        problems: Entries that are not in the shards, by reason; `problems.csv` lists them.
        notes: What the user should know.
    """

    out: Path
    shards: tuple[Path, ...]
    samples: int
    classes: int
    per_class: tuple[int, ...]
    problems: dict[str, int]
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "out": str(self.out),
            "shards": [path.name for path in self.shards],
            "samples": self.samples,
            "classes": self.classes,
            "per_class": list(self.per_class),
            "problems": self.problems,
            "notes": list(self.notes),
        }


def write_tables(out: Path, plan: Plan, parts: Iterable[tuple[Path, pa.Table]]) -> Outcome:
    """Writes `classes.txt`, `samples.parquet` and `problems.csv`.

    Args:
        out: The folder.
        plan: What was to be imported.
        parts: Each shard with the table that `write_shard` returned.
    """
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in plan.classes))
    shards, problems, labels, hashes, extensions = [], [plan.problems], [], [], []
    temporary = out / "samples.parquet.part"
    writer: parquet.ParquetWriter | None = None
    for shard, table in parts:
        absent = pc.is_valid(table.column("reason"))
        problems.append(table.filter(absent).select(PROBLEMS.names))
        good = table.filter(pc.invert(absent)).drop_columns(["reason", "detail"])
        good = good.add_column(1, "shard", pa.array([shard.name] * len(good), pa.string()))
        writer = writer or parquet.ParquetWriter(temporary, good.schema, compression="zstd")
        writer.write_table(good)
        if len(good):
            shards.append(shard)
        labels.append(good.column("label").to_numpy())
        hashes.append(_short_hashes(good.column("sha256")))
        extensions.append(good.column("extension"))
    if writer is not None:
        writer.close()
        replace_file(temporary, out / "samples.parquet")
    all_problems = pa.concat_tables(problems)
    csv.write_csv(all_problems, out / "problems.csv.part")
    replace_file(out / "problems.csv.part", out / "problems.csv")
    label_N = np.concatenate(labels)
    per_class_K = np.bincount(label_N, minlength=len(plan.classes))
    chunks = [chunk for column in extensions for chunk in column.chunks]
    notes = (
        *plan.notes,
        *_empty_classes(plan.classes, per_class_K),
        *_copies(np.concatenate(hashes), label_N),
        *_formats(count_words(pa.chunked_array(chunks, pa.string()))),
    )
    return Outcome(
        out=out,
        shards=tuple(shards),
        samples=len(label_N),
        classes=len(plan.classes),
        per_class=tuple(per_class_K.tolist()),
        problems=count_words(all_problems.column("reason")),
        notes=notes,
    )


def _short_hashes(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    # Eight of 32 bytes: two of ten million images share them by chance once in 370,000 data sets.
    joined = b"".join(digest[:8] for digest in column.to_pylist())
    return np.frombuffer(joined, np.uint64)


def _empty_classes(classes: tuple[str, ...], per_class_K: npt.NDArray[np.int64]) -> list[str]:
    empty = [classes[label] for label in np.flatnonzero(per_class_K == 0).tolist()]
    if not empty:
        return []
    names = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
    return [f"{len(empty)} of {len(classes)} classes have no sample: {names}"]


def _copies(hash_N: npt.NDArray[np.uint64], label_N: npt.NDArray[np.int32]) -> list[str]:
    """Counts images that are byte for byte an earlier one; they are kept."""
    _, first, inverse = np.unique(hash_N, return_index=True, return_inverse=True)
    copies = len(hash_N) - len(first)
    if not copies:
        return []
    other = int(np.count_nonzero(label_N != label_N[first[inverse]]))
    return [
        f"{copies:,} images are byte for byte copies of another, {other:,} of them with another "
        "label; they are kept, samples.parquet has the sha256 of each"
    ]


def _formats(counts: dict[str, int]) -> list[str]:
    rare = {name: count for name, count in counts.items() if name not in _KNOWN}
    if not rare:
        return []
    named = ", ".join(f"{count:,} .{name}" for name, count in rare.items())
    setting = ", ".join(f'"{name}"' for name in (*_KNOWN, *rare))
    return [f"{named}: shardsieve finds them with --set 'index.image=[{setting}]'"]
