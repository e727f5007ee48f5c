"""`manifest.parquet`: beside the clean shards, a row per input sample: what became of it and where.

N samples of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import KEPT_REASONS, WORDS, Reason
from shardsieve.data.scores import reason_numbers
from shardsieve.data.table import replace_file

MANIFEST = "manifest.parquet"
_ROWS_AT_ONCE = 131_072
_GROUPS = ("kept", "removed", "unreadable")
_WORD_OF = [WORDS.get(value, "") for value in range(256)]
_GROUP_OF = np.zeros(256, np.int32)
for _reason in Reason:
    _GROUP_OF[_reason] = _GROUPS.index(_reason.group)
_WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", _WORD),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int32()),
        ("class", _WORD),
        ("final_label", pa.int32()),
        ("suggested_label", pa.int32()),
        ("loss", pa.float32()),
        ("margin", pa.float32()),
        ("p_clean", pa.float64()),
        ("decision", _WORD),
        ("reason", _WORD),
        ("file", _WORD),
        ("file_offset", pa.int64()),
    ]
)


def write_written(
    path: Path,
    index: SampleIndex,
    scores: Path,
    files: list[str],
    file_N: npt.NDArray[np.int32],
    file_offset_N: npt.NDArray[np.int64],
) -> None:
    """Writes the table, a piece of it in memory at a time.

    Args:
        path: Where it goes; it appears when it is whole.
        index: Where the samples came from.
        scores: `scores.parquet`, with the same rows.
        files: Names of the output shards.
        file_N: (N,) which of them a sample went to, -1 for none.
        file_offset_N: (N,) first byte of the sample there.
    """
    temporary = path.with_name(path.name + ".part")
    with (
        pq.ParquetFile(scores) as source,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        names = ["loss", "margin", "p_clean", "reason", "final_label", "suggested_label"]
        start = 0
        for batch in source.iter_batches(_ROWS_AT_ONCE, columns=names):
            span = slice(start, start + batch.num_rows)
            writer.write_table(_piece(batch, index, span, files, file_N, file_offset_N))
            start = span.stop
    replace_file(temporary, path)


def _piece(
    scores: pa.RecordBatch,
    index: SampleIndex,
    span: slice,
    files: list[str],
    file_N: npt.NDArray[np.int32],
    file_offset_N: npt.NDArray[np.int64],
) -> pa.Table:
    samples = index.table.slice(span.start, scores.num_rows)
    file_R, label_R = file_N[span], index.label_N[span]
    reason_R = reason_numbers(scores.column("reason"))
    reason_R[np.isin(reason_R, KEPT_REASONS) & (file_R < 0)] = Reason.OVER_QUOTA
    columns = {
        "key": samples.column("key"),
        "source": _words(index.numbers("shard")[span], [str(ref.path) for ref in index.shards]),
        "offset": samples.column("offset"),
        "size": samples.column("size"),
        "label": pa.array(label_R, mask=label_R < 0),
        "class": _words(label_R, list(index.classes)),
        "final_label": scores.column("final_label").cast(pa.int32()),
        "suggested_label": scores.column("suggested_label").cast(pa.int32()),
        "loss": scores.column("loss"),
        "margin": scores.column("margin"),
        "p_clean": scores.column("p_clean"),
        "decision": _words(_GROUP_OF[reason_R], list(_GROUPS)),
        "reason": _words(reason_R, _WORD_OF),
        "file": _words(file_R, files),
        "file_offset": pa.array(file_offset_N[span], mask=file_R < 0),
    }
    return pa.table(columns, schema=SCHEMA)


def _words(number_R: npt.NDArray[np.integer[Any]], words: Sequence[str]) -> pa.Array:
    """Returns words by number, null where the number is negative."""
    used, numbers = np.unique(number_R, return_inverse=True)
    first = int(np.searchsorted(used, 0))
    numbers = numbers.astype(np.int32) - first
    dictionary = pa.array([words[number] for number in used[first:].tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=numbers < 0), dictionary)


def open_written(folder: Path) -> pq.ParquetFile:
    """Opens the table beside the clean shards."""
    return pq.ParquetFile(folder / MANIFEST)
