"""Arrow files that are read without copying and appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.data.reason import WORDS
from shardsieve.errors import DataError


def replace_file(temporary: Path, final: Path) -> None:
    """Gives a finished file its name, after its bytes have reached the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)


def link_or_copy(old: Path, new: Path) -> None:
    """Gives a finished file a second name elsewhere: linked, or copied where links do not work."""
    temporary = new.with_name(new.name + ".part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(old, temporary)
    except OSError:
        # Not every file system knows links.
        shutil.copyfile(old, temporary)
    replace_file(temporary, new)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    replace_file(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_ipc(path: Path, table: pa.Table) -> None:
    """Writes an Arrow IPC file whole or not at all, in one batch: columns stay contiguous."""
    temporary = path.with_name(path.name + ".part")
    with pa.ipc.new_file(temporary, table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    replace_file(temporary, path)


def read_ipc(path: Path) -> pa.Table:
    """Maps an Arrow IPC file into memory; nothing is read until it is used.

    Raises:
        DataError: It is gone, or not a whole Arrow file.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: gone or damaged ({error}); delete {path.parent} to make it anew"
        ) from error


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Returns a numeric column without nulls as an array; no copy when it is one chunk."""
    chunks = table.column(name).chunks
    if len(chunks) == 1:
        return chunks[0].to_numpy(zero_copy_only=True)
    dtype = table.schema.field(name).type.to_pandas_dtype()
    return np.concatenate([np.empty(0, dtype), *(chunk.to_numpy() for chunk in chunks)])


def reason_words(reason_N: npt.NDArray[np.uint8]) -> pa.DictionaryArray:
    """Returns the reasons as dictionary-encoded words, a byte a row."""
    lookup = np.full(256, 0, np.int8)
    for position, value in enumerate(WORDS):
        lookup[value] = position
    return pa.DictionaryArray.from_arrays(
        pa.array(lookup[reason_N]), pa.array(list(WORDS.values()), pa.string())
    )


def count_words(words: pa.ChunkedArray) -> dict[str, int]:
    """Counts how often each word occurs, in the order of the words."""
    counts = pc.value_counts(words).to_pylist()
    return dict(sorted((str(row["values"]), int(row["counts"])) for row in counts))
