"""The headers of a tar to columns: where every member lies, what it is called, what is damaged.

Shapes: P bytes of the tar, E entries, G gaps, Q bytes of all names.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import numpy as np

from shardsieve_kernels._backend import BackendUnavailable, implementation
from shardsieve_kernels._checks import check_array, check_at_least

__all__ = ["BLOCK", "KEYLESS", "REGULAR", "ScanBackend", "TarEntries", "name_hash", "tar_scan"]

ScanBackend = Literal["reference", "cpu"]

BLOCK = 512
# Values of kind_E that are regular files: ustar, the format before it, and contiguous files.
REGULAR = (ord("0"), 0, ord("7"))
# key_size_E of a name that belongs to no sample.
KEYLESS = -1

_NO_GPU = (
    "tar_scan has no GPU version: the headers lie in the host's page cache, and where one of them "
    "lies only the one before it says; use backend='cpu'"
)


class TarEntries(NamedTuple):
    """The entries of a tar, or of a piece of it; all places are bytes from the start of the tar."""

    start_E: np.ndarray
    """(E,) i64: the first header of an entry, extension headers included."""
    header_E: np.ndarray
    """(E,) i64: its own header."""
    data_E: np.ndarray
    """(E,) i64: the first byte of its content."""
    size_E: np.ndarray
    """(E,) i64: bytes of content, as the header or a pax record says."""
    end_E: np.ndarray
    """(E,) i64: the first byte after the padded content; past P when the tar is cut short."""
    kind_E: np.ndarray
    """(E,) u8: the type flag, a character; REGULAR lists those of files."""
    names_Q: np.ndarray
    """(Q,) u8: the names one after another, as they lie in the tar."""
    name_at_E1: np.ndarray
    """(E + 1,) i64: where each name begins in names_Q, and Q."""
    key_size_E: np.ndarray
    """(E,) i32: bytes of the name that are the key as WebDataset splits it (up to the first dot of
    the file name; the extension is what follows that dot), KEYLESS where there is none."""
    name_hash_E: np.ndarray
    """(E,) u64: FNV-1a of the name."""
    key_hash_E: np.ndarray
    """(E,) u64: of the key; 0 where there is none."""
    extension_hash_E: np.ndarray
    """(E,) u64: of the extension with A to Z as a to z; 0 where there is no key."""
    gaps_G2: np.ndarray
    """(G, 2) i64: start and end of ranges where no valid header was found."""
    cut_at: int
    """Start of an entry that the end of the tar cuts short, -1 if there is none."""
    ended: bool
    """The end-of-archive marker was seen."""
    resume_at: int
    """Where to go on after max_entries, -1 when the scan is complete."""


def tar_scan(
    tar_P: Any, *, start: int = 0, max_entries: int | None = None, backend: ScanBackend
) -> TarEntries:
    """List the entries of a tar by their headers; contents are not read.

    Understands ustar, GNU long names, base-256 sizes and pax headers (path, size). Every header's
    checksum is verified, as a sum of unsigned or, from some old writers, of signed bytes. A damaged
    header ends nothing, nor does one that was overwritten with zeros: the scan goes on at the next
    512-byte block that holds a valid one, and the range between is a gap.

    Args:
        tar_P: (P,) u8, or an object with the buffer protocol, such as a mapped file. Never written
            to.
        start: where to begin: 0, or resume_at of the scan before, or some entry's start.
        max_entries: stop before the next entry after so many (or so many gaps); None for all.
        backend: "reference" or "cpu"; resolve_backend's "gpu" has no use here.

    Returns:
        TarEntries.

    Raises:
        TypeError: tar_P is no buffer of bytes.
        ValueError: start or max_entries is out of range.
        BackendUnavailable: the backend is "gpu", unknown, or cannot run here.

    Guarantees:
        It ends, and reads nothing outside tar_P, whatever the bytes are. All backends give the same
        bits. "cpu" runs without the interpreter's lock, so that threads scan shards side by side.
    """
    # The name is typed, but a caller may hand on what it resolved for all of its kernels.
    if str(backend) == "gpu":
        raise BackendUnavailable("gpu", _NO_GPU)
    if not isinstance(tar_P, np.ndarray):
        tar_P = np.frombuffer(tar_P, np.uint8) if len(tar_P) else np.empty(0, np.uint8)
    check_array("tar_P", tar_P, 1, ("uint8",), backend)
    check_at_least("start", start, 0)
    if start > len(tar_P):
        raise ValueError(f"start must be at most the {len(tar_P)} bytes of tar_P, found {start}")
    if max_entries is not None:
        check_at_least("max_entries", max_entries, 1)
    most = len(tar_P) // BLOCK + 1
    most = most if max_entries is None else min(most, max_entries)
    run = implementation("tar_scan", backend)
    return cast("TarEntries", run(tar_P, start, most))


def name_hash(name: bytes) -> int:
    """Hash a name, a key or a lower-case extension as tar_scan does.

    FNV-1a with 64 bits (Fowler, Noll and Vo): fast on short names, and no secret: names can be made
    that collide, so equal hashes must be confirmed by the bytes.
    """
    value = 0xCBF29CE484222325
    for byte in name:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
