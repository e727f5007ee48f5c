"""Whether the output shards hold their samples byte for byte.

N samples of the index, R samples of an output shard.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardsieve.data.index import SampleIndex
from shardsieve.data.scores import reason_numbers
from shardsieve.errors import ShardError
from shardsieve.shards.copy import Ranges, coalesce, padded
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE

_PIECE_BYTES = 1024 * 1024
_MOST_THREADS = 8
_LISTED = 3
_ANEW = "; delete it and run `shardsieve write`"


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Where `manifest.parquet` says that the samples went.

    Attributes:
        files: Names of the output shards.
        file_N: (N,) i32 number of the output shard, -1 for none.
        file_offset_N: (N,) i64 first byte there.
        reasons: (256,) how many rows have each `Reason`.
    """

    files: list[str]
    file_N: npt.NDArray[np.int32]
    file_offset_N: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> WrittenRows:
        """Reads three columns, a piece at a time."""
        numbers: dict[str, int] = {}
        file_N, offset_N = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        reasons = np.zeros(256, np.int64)
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(131_072, columns=["file", "file_offset", "reason"]):
                file_N.append(_numbers(batch.column("file"), numbers))
                offset_N.append(batch.column("file_offset").fill_null(-1).to_numpy())
                reasons += np.bincount(reason_numbers(batch.column("reason")), minlength=256)
        return cls(list(numbers), np.concatenate(file_N), np.concatenate(offset_N), reasons)


def _numbers(words: pa.Array, known: dict[str, int]) -> npt.NDArray[np.int32]:
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    of_words = [known.setdefault(word, len(known)) for word in words.dictionary.to_pylist()]
    codes = np.array([*of_words, -1], np.int32)
    numbers: npt.NDArray[np.int32] = codes[words.indices.fill_null(-1).to_numpy()]
    return numbers


def check_output(
    listed: Mapping[str, tuple[Path, dict[str, Any]]], rows: WrittenRows, index: SampleIndex
) -> Iterator[str]:
    """Compares every output shard with its record and its samples with their source.

    Args:
        listed: By name: where the shard lies, and what the record says of it.
        rows: What the manifest says.
        index: Where the samples came from.

    Yields:
        A sentence for whatever is off.
    """
    for name in rows.files:
        if name not in listed:
            yield f"{name}: in the manifest but not in the record of write"
    order = np.lexsort((rows.file_offset_N, rows.file_N))
    edges = np.searchsorted(rows.file_N[order], np.arange(len(rows.files) + 1))
    of_file = {
        name: order[edges[number] : edges[number + 1]] for number, name in enumerate(rows.files)
    }
    check = partial(_check_file, rows=rows, index=index, of_file=of_file)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for problems in pool.map(check, listed.values()):
            yield from problems


def _check_file(
    shard: tuple[Path, dict[str, Any]],
    *,
    rows: WrittenRows,
    index: SampleIndex,
    of_file: Mapping[str, npt.NDArray[np.int64]],
) -> list[str]:
    path, told = shard
    samples = of_file.get(path.name, np.empty(0, np.int64))
    if not path.is_file():
        return [f"{path}: gone; run `shardsieve write`"]
    problems = []
    size_R = padded(index.numbers("size")[samples])
    size = int(size_R.sum()) + len(END_OF_ARCHIVE)
    if len(samples) != told["samples"]:
        problems.append(
            f"{path}: {len(samples):,} samples in the manifest, {told['samples']:,} in the record"
        )
    if not np.array_equal(rows.file_offset_N[samples], np.cumsum(size_R) - size_R):
        problems.append(f"{path}: its samples do not follow one another in the manifest")
    if path.stat().st_size != told["size_bytes"] or size != told["size_bytes"]:
        problems.append(
            f"{path}: {path.stat().st_size:,} bytes, its samples make {size:,}, "
            f"its record says {told['size_bytes']:,}"
        )
    if problems:
        return problems
    files = ShardFiles([ref.path for ref in index.shards])
    ranges = coalesce(
        index.numbers("shard")[samples],
        index.numbers("offset")[samples],
        index.numbers("size")[samples],
    )
    try:
        sha256, bad_bytes, ended = _compare(path, files, ranges)
    except (ShardError, OSError) as error:
        return [f"{path}: cannot be compared with its source: {error}"]
    finally:
        files.close()
    if not ended:
        problems.append(f"{path}: the end of the archive is not two empty blocks{_ANEW}")
    for byte in bad_bytes[:_LISTED]:
        sample = int(np.searchsorted(rows.file_offset_N[samples], byte, side="right")) - 1
        key = index.keys_N[int(samples[sample])]
        problems.append(f"{path}: byte {byte:,}, in {key}, is not what its source has{_ANEW}")
    if told["sha256"] not in (None, sha256):
        problems.append(f"{path}: its sha256 differs{_ANEW}")
    return problems


def _compare(path: Path, files: ShardFiles, ranges: Ranges) -> tuple[str, list[int], bool]:
    """Hashes an output shard while it is compared with the ranges it was made of.

    Returns:
        Its sha256, the first byte that differs of each piece that does, and whether it ends as an
        archive should.
    """
    digest, bad_bytes = hashlib.sha256(), []
    position = 0
    with path.open("rb") as file:
        for shard, start, end in ranges.tolist():
            for first in range(start, end, _PIECE_BYTES):
                count = min(_PIECE_BYTES, end - first)
                written = file.read(count)
                digest.update(written)
                source = files.read(shard, first, count)
                if written != source:
                    bad_bytes.append(position + _first_difference(written, source))
                position += count
            gap = file.read(-position % BLOCK)
            digest.update(gap)
            position += len(gap)
        rest = file.read()
        digest.update(rest)
    return digest.hexdigest(), bad_bytes, rest == END_OF_ARCHIVE


def _first_difference(one: bytes, other: bytes) -> int:
    length = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return int(differ.argmax()) if differ.any() else length
