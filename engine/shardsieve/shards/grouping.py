"""From the columns of tar_scan to samples: which members belong together, keys, extensions.

Shapes: E entries of the tar, M members of samples, S samples, R rows: samples and damaged ranges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.shards.gather import as_text, gather
from shardsieve_kernels.tar_scan import KEYLESS, REGULAR, TarEntries, name_hash


class Rows(NamedTuple):
    """Where samples begin and end, before anything is known about their keys as text."""

    start_R: npt.NDArray[np.int64]
    end_R: npt.NDArray[np.int64]
    first_R1: npt.NDArray[np.int64]
    entry_M: npt.NDArray[np.int64]
    extension_M: npt.NDArray[np.int32]
    extensions: list[str]


def members_of(found: TarEntries) -> npt.NDArray[np.int64]:
    """Returns (M,) i64, the entries that are files with a key."""
    return np.flatnonzero((found.key_size_E != KEYLESS) & np.isin(found.kind_E, REGULAR))


def group_rows(found: TarEntries, total: int) -> Rows:
    """Groups consecutive members with the same key; ranges without a header are rows, too.

    Args:
        found: The entries of a tar of `total` bytes, or of a piece of it.
        total: Where samples end at the latest.
    """
    entry_M = members_of(found)
    extension_M, extensions = extensions_of(found, entry_M)
    begins = _begins(found, entry_M, extension_M, len(extensions))
    first_S = np.flatnonzero(begins)
    last_S = np.append(first_S[1:], len(entry_M))[: len(first_S)] - 1
    start_S, end_S = found.start_E[entry_M[first_S]], found.end_E[entry_M[last_S]]
    start_R = np.concatenate([start_S, found.gaps_G2[:, 0]])
    end_R = np.concatenate([np.minimum(end_S, total), found.gaps_G2[:, 1]])
    n_members_R = np.concatenate([last_S - first_S + 1, np.zeros(len(found.gaps_G2), np.int64)])
    order = np.argsort(start_R, kind="stable")
    first_R1 = np.concatenate([[0], np.cumsum(n_members_R[order])])
    return Rows(start_R[order], end_R[order], first_R1, entry_M, extension_M, extensions)


def extensions_of(
    found: TarEntries, entry_M: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Returns (M,) i32 into the extensions that occur, and those, in lower case."""
    at_M = found.name_at_E1[entry_M] + found.key_size_E[entry_M] + 1
    raw_M = gather(found.names_Q, at_M, found.name_at_E1[entry_M + 1] - at_M).dictionary_encode()
    words = [
        raw.decode("utf-8", "backslashreplace").lower() for raw in raw_M.dictionary.to_pylist()
    ]
    extensions = list(dict.fromkeys(words))
    code = np.array([extensions.index(word) for word in words], np.int32)
    return code[raw_M.indices.to_numpy()], extensions


def _begins(
    found: TarEntries,
    entry_M: npt.NDArray[np.int64],
    extension_M: npt.NDArray[np.int32],
    n_extensions: int,
) -> npt.NDArray[np.bool_]:
    """Returns which members begin a sample: another key, damage before it, or a repetition."""
    begins = np.ones(len(entry_M), np.bool_)
    keys = gather(found.names_Q, found.name_at_E1[entry_M], found.key_size_E[entry_M])
    begins[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    if len(found.gaps_G2):
        n_gaps_M = np.searchsorted(found.gaps_G2[:, 0], found.start_E[entry_M])
        begins[1:] |= n_gaps_M[1:] != n_gaps_M[:-1]
    run_M = np.cumsum(begins)
    kinds_M = run_M * n_extensions + extension_M
    if len(np.unique(kinds_M)) == len(kinds_M):
        return begins
    # A repeated extension can only be the next sample under the same key.
    seen: set[int] = set()
    for member, kind in enumerate(kinds_M.tolist()):
        if begins[member] or kind in seen:
            begins[member] = True
            seen.clear()
        seen.add(kind)
    return begins


def keys_of(
    raw_S: pa.BinaryArray, key_hash_S: npt.NDArray[np.uint64]
) -> tuple[pa.StringArray, npt.NDArray[np.uint64]]:
    """Returns keys as text, and their hashes; bytes that are no UTF-8 become escapes."""
    key_S = as_text(raw_S)
    if key_S is not None:
        return key_S, key_hash_S
    return hashed([raw.decode("utf-8", "backslashreplace") for raw in raw_S.to_pylist()])


def hashed(texts: list[str]) -> tuple[pa.StringArray, npt.NDArray[np.uint64]]:
    """Returns keys as a column, and their hashes."""
    hashes = [name_hash(text.encode("utf-8", "backslashreplace")) for text in texts]
    return pa.array(texts, pa.string()), np.array(hashes, np.uint64)


def name_of(found: TarEntries, entry: int) -> str:
    """Returns the name of one entry."""
    low, high = found.name_at_E1[entry], found.name_at_E1[entry + 1]
    return found.names_Q[low:high].tobytes().decode("utf-8", "backslashreplace")
