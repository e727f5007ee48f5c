"""Reading the rows of many shards: where every sample lies, and which class its label means.

Shapes: U different labels, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import IndexConfig
from shardsieve.data.index import ShardRef
from shardsieve.data.location import ShardPath
from shardsieve.data.reason import Reason
from shardsieve.engines.executor import Executor, Job
from shardsieve.engines.local import Local
from shardsieve.progress import Progress
from shardsieve.shards.labels import TableLabels, label_source, resolve_labels
from shardsieve.shards.rows import RowReader, ShardReader, one_shard, read_rows
from shardsieve_kernels.tar_scan import ScanBackend

# Folder with the rows of each shard: they hold until that shard changes.
PARTS = "parts"


def read_shards(
    shards: Sequence[ShardPath],
    config: IndexConfig,
    out: Path,
    previous: Path | None,
    threads: int,
    progress: Progress,
    executor: Executor | None,
    backend: ScanBackend = "cpu",
    name: str = "index",
) -> ShardRows:
    """Reads the tar headers and labels of shards; one that has not changed is not read again.

    Args:
        shards: Their paths.
        config: What counts as image and label.
        out: Folder that gets `PARTS`.
        previous: Folder with the `PARTS` of an earlier call.
        threads: Shards that are read side by side.
        progress: Where to report.
        executor: Who reads the shards; default: this process.
        backend: Which kernel scans.
        name: What is done, for people.

    Raises:
        ShardError: A shard cannot be read as a tar.
        LabelError: The table of labels is missing or is no table.
    """
    source = label_source(config.labels)
    table = source if isinstance(source, TableLabels) else None
    in_shards = None if isinstance(source, TableLabels) else source
    reader = RowReader(config.image, in_shards, config.labels, backend)
    folder = out / PARTS
    folder.mkdir(exist_ok=True, parents=True)
    earlier = previous / PARTS if previous is not None and previous.is_dir() else None
    job = Job(name, "shards", partial(ShardReader, reader), one_shard)
    threads = max(1, threads)
    with progress.track(name, len(shards), "shards") as advance:
        with ThreadPoolExecutor(threads) as pool:
            known = pool.map(lambda path: reader.known(path, folder, earlier), shards)
            found = {n: shard for n, shard in enumerate(known) if shard is not None}
        advance(len(found))
        todo = [(number, path) for number, path in enumerate(shards) if number not in found]
        read = (executor or Local()).map(job, todo, folder, advance, threads=threads)
        found |= {number: (ref, folder / name) for (number, _), (ref, name) in read}
    refs, parts = zip(*(found[number] for number in range(len(shards))), strict=True)
    # Of shards that an interrupted call read, and which have changed since.
    kept = {file for part in parts for file in (part, part.with_suffix(".json"))}
    for file in folder.iterdir():
        if file not in kept:
            file.unlink()
    return ShardRows(list(refs), list(parts), table)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of all shards, as often as they are needed: they are read from disk.

    Attributes:
        refs: The shards.
        parts: Files with their rows.
        table: Labels that do not stand in the shards.
    """

    refs: list[ShardRef]
    parts: list[Path]
    table: TableLabels | None

    @property
    def n_samples(self) -> int:
        """Rows of all shards."""
        return sum(ref.n_samples for ref in self.refs)

    def given(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (shard, rows with labels as given)."""
        for shard, part in enumerate(self.parts):
            for batch in read_rows(part):
                yield shard, batch if self.table is None else _with_table(batch, self.table)

    def finished(self, classes: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (shard, rows as the index has them, and `key_hash`)."""
        for shard, batch in self.given():
            label_B, reason_B, detail_B = _resolve(batch, classes)
            columns = {
                **{name: batch.column(name) for name in batch.schema.names},
                "shard": pa.array(np.full(batch.num_rows, shard, np.int32)),
                "label": pa.array(label_B),
                "reason": pa.array(reason_B),
                "detail": detail_B,
            }
            yield shard, pa.RecordBatch.from_pydict(columns)


def _with_table(batch: pa.RecordBatch, table: TableLabels) -> pa.RecordBatch:
    given, are_names = table.of_keys(batch.column("key"))
    absent = pc.if_else(
        pc.is_null(given), f"{table.path.name} has no label for this key", pa.scalar(None)
    )
    columns = {
        **{name: batch.column(name) for name in batch.schema.names},
        "given": given,
        "is_name": pa.array(np.full(batch.num_rows, are_names)),
        "detail": pc.coalesce(batch.column("detail"), absent),
    }
    return pa.RecordBatch.from_pydict(columns)


def _resolve(
    batch: pa.RecordBatch, classes: Sequence[str]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], pa.Array]:
    """Returns labels, reasons and details of rows; every different label is looked up once."""
    encoded = batch.column("given").dictionary_encode()
    code_B = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    is_name_B = batch.column("is_name").to_numpy(zero_copy_only=False)
    pair_U, place_B = np.unique(2 * code_B + is_name_B, return_inverse=True)
    code_U = pair_U // 2
    given_U = pa.chunked_array([encoded.dictionary.take(pa.array(code_U, mask=code_U < 0))])
    is_name_U = pa.chunked_array([pa.array(pair_U % 2 == 1)])
    label_U, label_reason_U = resolve_labels(given_U, is_name_U, classes)
    reason_B = batch.column("reason").to_numpy()
    judged_B = reason_B == Reason.KEPT
    label_reason_B = label_reason_U[place_B]
    detail_B = batch.column("detail")
    outside_B = judged_B & (label_reason_B == Reason.LABEL_OUTSIDE)
    if outside_B.any():
        told = f"and there are {len(classes)} classes"
        sentences = pc.binary_join_element_wise("the label is", batch.column("given"), told, " ")
        detail_B = pc.if_else(pa.array(outside_B), sentences, detail_B)
    reason_B = np.where(judged_B, label_reason_B, reason_B)
    return label_U[place_B], reason_B, detail_B
