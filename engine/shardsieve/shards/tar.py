"""Tar headers: where every member of a shard lies, from one pass over a mapped file.

Understands ustar, GNU long names, base-256 sizes and pax headers. A damaged header ends nothing,
nor does one that was overwritten with zeros: the scan goes on at the next 512-byte block that holds
a valid one, and says what it passed over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shardsieve.errors import ShardError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
_ZERO_BLOCK = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
# Links, devices, folders and pipes: whatever their size field says, no content follows.
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_EXTENSIONS = (b"L", b"K", b"x", b"X")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
# The checksum field itself counts as eight spaces.
_CHECKSUM_BIAS = 8 * ord(" ")


class Member(NamedTuple):
    """One regular file of a tar; all offsets in bytes from the start of the shard.

    Attributes:
        name: Path inside the tar; bytes that are no UTF-8 appear as escapes.
        start: First of its headers, extension headers included.
        data: First byte of its content.
        size: Bytes of content.
        end: First byte after the padded content; past the end of the file when it is cut short.
    """

    name: str
    start: int
    data: int
    size: int
    end: int


@dataclass(slots=True)
class TarScan:
    """The members of one shard, and what was wrong with it.

    Attributes:
        buffer: The whole shard, mapped.
        others: Entries that are no regular files: folders, links, devices, global headers.
        gaps: (start, end) of ranges where no valid header was found.
        cut_at: Start of an entry whose content is cut short by the end of the file, if any.
        ended: Whether the end-of-archive marker was seen.
    """

    buffer: mmap.mmap | bytes
    others: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    cut_at: int | None = None
    ended: bool = False

    def members(self) -> Iterator[Member]:
        """Yields the regular files in order; the counts are complete when it is exhausted."""
        position, start, total = 0, None, len(self.buffer)
        long_name: str | None = None
        size_override: int | None = None
        while position + BLOCK <= total:
            header = self.buffer[position : position + BLOCK]
            if not _is_valid(header):
                resumed = self._next_valid(position)
                if resumed == position:
                    self.ended = True
                    return
                self.gaps.append((position, resumed))
                position, start, long_name, size_override = resumed, None, None, None
                continue
            kind = header[156:157]
            size = _number(header[124:136])
            data = position + BLOCK
            start = position if start is None else start
            if kind in _EXTENSIONS:
                if data + size > total:
                    self.cut_at = start
                    return
                content = self.buffer[data : data + size]
                if kind == b"L":
                    long_name = _text(content.rstrip(b"\0"))
                elif kind != b"K":
                    records = _pax_records(content)
                    long_name = records.get("path", long_name)
                    size_override = _decimal(records.get("size", ""), size_override)
                position = data + _padded(size)
                continue
            if size_override is not None:
                size = size_override
            end = data + _padded(0 if kind in _WITHOUT_CONTENT else size)
            if kind in _REGULAR:
                name = _name(header) if long_name is None else long_name
                if data + size > total:
                    self.cut_at = start
                yield Member(name, start, data, size, end)
            else:
                self.others += 1
            position, start, long_name, size_override = end, None, None, None
        if self.cut_at is None and (position < total or start is not None):
            self.cut_at = position if start is None else start

    def _next_valid(self, position: int) -> int:
        """Returns where the next header is; without one, the first zero block, else the end."""
        magics = (b"ustar", self.buffer[257:262])
        zeros = None
        while position + BLOCK <= len(self.buffer):
            header = self.buffer[position : position + BLOCK]
            if header == _ZERO_BLOCK:
                zeros = position if zeros is None else zeros
            elif header[257:262] in magics and _is_valid(header):
                return position
            position += BLOCK
        return len(self.buffer) if zeros is None else zeros


def open_tar(path: Path) -> TarScan:
    """Maps a shard for scanning.

    Raises:
        ShardError: It cannot be opened, is compressed, or does not begin like a tar.
    """
    try:
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            size = file.seek(0, 2)
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from error
    magic = bytes(buffer[:2])
    if magic in _COMPRESSED and not _is_valid(buffer[:BLOCK]):
        raise ShardError(
            f"{path}: compressed with {_COMPRESSED[magic]}. Samples are read by offset, "
            "so unpack it to a plain .tar first"
        )
    if len(buffer) < BLOCK or (buffer[:BLOCK] != _ZERO_BLOCK and not _is_valid(buffer[:BLOCK])):
        raise ShardError(f"{path}: not a tar file ({len(buffer)} bytes, no valid header at 0)")
    return TarScan(buffer)


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member's name into key and extension as WebDataset does.

    The key reaches to the first dot of the file name, the extension is the rest in lower case.
    Returns None for names that belong to no sample: no extension, or `__like_this__`, in a folder
    `__like_this__`, or, unlike WebDataset, a hidden file.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    first = name.partition("/")[0]
    if not dot or not stem or (len(first) > 3 and first[:2] == first[-2:] == "__"):
        return None
    return folder + slash + stem, extension.lower()


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _is_valid(header: bytes) -> bool:
    if len(header) < BLOCK:
        return False
    try:
        stored = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    unsigned = sum(header) - sum(header[148:156]) + _CHECKSUM_BIAS
    if stored == unsigned:
        return True
    # Some old writers summed signed bytes.
    high = sum(1 for byte in header[:148] + header[156:] if byte > 127)
    return stored == unsigned - 256 * high


def _number(text: bytes) -> int:
    if text[0] & 0x80:
        return min(int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big"), 1 << 62)
    try:
        return max(int(text.split(b"\0", 1)[0].strip() or b"0", 8), 0)
    except ValueError:
        return 0


def _decimal(text: str, default: int | None) -> int | None:
    # More than 18 digits are no size of a file.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else default


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar keeps other fields where ustar has the prefix.
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    return _text(name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _pax_records(content: bytes) -> dict[str, str]:
    records = {}
    position = 0
    while position < len(content):
        space = content.find(b" ", position)
        digits = content[position:space]
        length = _decimal(_text(digits), 0) or 0
        if space < 0 or length <= space - position:
            break
        end = position + length
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        records[_text(key)] = _text(value)
        position = end
    return records
