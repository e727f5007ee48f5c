"""Whether the samples of an index still begin where it says: tar headers checked in bulk.

Written apart from the scanner that made the index, so that one checks the other.

B samples at a time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.location import ShardPath
from shardsieve.shards.files import open_shard
from shardsieve.shards.tar import BLOCK

_AT_ONCE = 4096
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0", b"7")
# Extension headers: the name comes in a later block.
_SEARCHED_BYTES = 8 * BLOCK


def check_headers(
    path: ShardPath,
    keys: pa.ChunkedArray,
    offset_R: npt.NDArray[np.int64],
    size_R: npt.NDArray[np.int64],
) -> Iterator[str]:
    """Looks for a tar header with the sample's key at the first byte of every sample.

    Args:
        path: The shard.
        keys: R keys.
        offset_R: (R,) first bytes.
        size_R: (R,) bytes of each sample.

    Yields:
        A sentence for every sample that is not where it should be.
    """
    if not len(offset_R):
        return
    with (
        os.fdopen(open_shard(path), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        for start in range(0, len(offset_R), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            yield from _check(
                path,
                mapped,
                keys.slice(start, _AT_ONCE).to_pylist(),
                offset_R[part],
                size_R[part],
            )


def _check(
    path: ShardPath,
    mapped: mmap.mmap,
    keys: list[str],
    offset_B: npt.NDArray[np.int64],
    size_B: npt.NDArray[np.int64],
) -> Iterator[str]:
    fits_B = (offset_B >= 0) & (size_B >= BLOCK) & (offset_B + size_B <= len(mapped))
    for row in np.flatnonzero(~fits_B).tolist():
        yield f"{path} at byte {offset_B[row]:,}: {keys[row]} reaches beyond the shard"
    rows = np.flatnonzero(fits_B)
    # One copy of the headers, and no view of the map that would outlive it.
    headers = [mapped[offset : offset + BLOCK] for offset in offset_B[rows].tolist()]
    valid_B = _valid(np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK))
    for row, header, valid in zip(rows.tolist(), headers, valid_B.tolist(), strict=True):
        key = keys[row]
        if not valid:
            yield f"{path} at byte {offset_B[row]:,}: no tar header, {key} was to begin here"
        elif not _names(header, key, mapped, int(offset_B[row])):
            yield f"{path} at byte {offset_B[row]:,}: another member than one of {key}"


def _valid(headers_BH: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether the checksums hold, summed as unsigned or, by old writers, as signed bytes."""
    stored_B8 = headers_BH[:, _CHECKSUM].astype(np.int64)
    octal_B8 = (stored_B8 >= ord("0")) & (stored_B8 <= ord("7"))
    told_B = np.zeros(len(headers_BH), np.int64)
    for column in range(stored_B8.shape[1]):
        digit_B = stored_B8[:, column] - ord("0")
        told_B = np.where(octal_B8[:, column], told_B * 8 + digit_B, told_B)
    spaces = 8 * ord(" ")
    sum_B = headers_BH.sum(axis=1, dtype=np.int64) - stored_B8.sum(axis=1) + spaces
    high_BH = headers_BH > 127
    high_B = high_BH.sum(axis=1) - high_BH[:, _CHECKSUM].sum(axis=1)
    valid: npt.NDArray[np.bool_] = (told_B == sum_B) | (told_B == sum_B - 256 * high_B)
    return valid & octal_B8.any(axis=1)


def _names(header: bytes, key: str, mapped: mmap.mmap, offset: int) -> bool:
    if "\\" in key:
        # Bytes that are no UTF-8 appear as escapes.
        return True
    if header[156:157] not in _REGULAR:
        return key.encode() in mapped[offset : offset + _SEARCHED_BYTES]
    name = header[:100].rstrip(b"\0")
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.startswith(key.encode() + b".")
