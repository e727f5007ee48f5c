"""tar_scan in plain Python: the specification, header by header."""

from __future__ import annotations

import re

import numpy as np

from shardsieve_kernels.tar_scan import BLOCK, KEYLESS, REGULAR, TarEntries, name_hash

_ZERO_BLOCK = bytes(BLOCK)
# Links, devices, folders and pipes: whatever their size field says, no content follows.
_WITHOUT_CONTENT = b"123456"
_EXTENSIONS = b"LKxX"
# The checksum field itself counts as eight spaces.
_CHECKSUM_BIAS = 8 * ord(" ")
_LARGEST_SIZE = 1 << 62


def tar_scan(tar_P: np.ndarray, start: int, most: int) -> TarEntries:
    """See `shardsieve_kernels.tar_scan.tar_scan`; checks nothing."""
    tar = np.ascontiguousarray(tar_P).data
    total = len(tar)
    rows: list[tuple[int, int, int, int, int, int]] = []
    names: list[bytes] = []
    gaps: list[tuple[int, int]] = []
    position, cut_at = start, -1
    first: int | None = None
    long_name: bytes | None = None
    pax_size: int | None = None
    while position + BLOCK <= total:
        if first is None and max(len(rows), len(gaps)) == most:
            return _columns(rows, names, gaps, cut_at, False, position)
        header = bytes(tar[position : position + BLOCK])
        if not _is_valid(header):
            resumed = _next_valid(tar, position)
            if resumed == position:
                return _columns(rows, names, gaps, cut_at, True, -1)
            gaps.append((position, resumed))
            position, first, long_name, pax_size = resumed, None, None, None
            continue
        kind, size, data = header[156], _size(header[124:136]), position + BLOCK
        first = position if first is None else first
        if kind in _EXTENSIONS:
            if data + size > total:
                return _columns(rows, names, gaps, first, False, -1)
            content = bytes(tar[data : data + size])
            if kind == ord("L"):
                long_name = content.rstrip(b"\0")
            elif kind != ord("K"):
                records = _pax_records(content)
                long_name = records.get(b"path", long_name)
                pax_size = _decimal(records.get(b"size", b""), pax_size)
            position = data + _padded(size)
            continue
        size = size if pax_size is None else pax_size
        end = data + _padded(0 if kind in _WITHOUT_CONTENT else size)
        if kind in REGULAR and data + size > total:
            cut_at = first
        rows.append((first, position, data, size, end, kind))
        names.append(_name(header) if long_name is None else long_name)
        position, first, long_name, pax_size = end, None, None, None
    if cut_at < 0 and (position < total or first is not None):
        cut_at = position if first is None else first
    return _columns(rows, names, gaps, cut_at, False, -1)


def _columns(
    rows: list[tuple[int, int, int, int, int, int]],
    names: list[bytes],
    gaps: list[tuple[int, int]],
    cut_at: int,
    ended: bool,
    resume_at: int,
) -> TarEntries:
    places_E6 = np.array(rows, np.int64).reshape(-1, 6)
    key_sizes = [_key_size(name) for name in names]
    pairs = list(zip(names, key_sizes, strict=True))
    keys = [name_hash(name[:size]) if size != KEYLESS else 0 for name, size in pairs]
    extensions = [
        name_hash(name[size + 1 :].lower()) if size != KEYLESS else 0 for name, size in pairs
    ]
    start_E, header_E, data_E, size_E, end_E, kind_E = np.ascontiguousarray(places_E6.T)
    return TarEntries(
        start_E=start_E,
        header_E=header_E,
        data_E=data_E,
        size_E=size_E,
        end_E=end_E,
        kind_E=kind_E.astype(np.uint8),
        names_Q=np.frombuffer(b"".join(names), np.uint8),
        name_at_E1=np.cumsum([0, *map(len, names)], dtype=np.int64),
        key_size_E=np.array(key_sizes, np.int32),
        name_hash_E=np.array([name_hash(name) for name in names], np.uint64),
        key_hash_E=np.array(keys, np.uint64),
        extension_hash_E=np.array(extensions, np.uint64),
        gaps_G2=np.array(gaps, np.int64).reshape(-1, 2),
        cut_at=cut_at,
        ended=ended,
        resume_at=resume_at,
    )


def _next_valid(tar: memoryview, position: int) -> int:
    """Returns where the next header is; without one, the first zero block, else the end."""
    magics = (b"ustar", tar[257:262])
    zeros = None
    while position + BLOCK <= len(tar):
        header = bytes(tar[position : position + BLOCK])
        if header == _ZERO_BLOCK:
            zeros = position if zeros is None else zeros
        elif header[257:262] in magics and _is_valid(header):
            return position
        position += BLOCK
    return len(tar) if zeros is None else zeros


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _is_valid(header: bytes) -> bool:
    stored = _octal(header[148:156].strip(b" \0"))
    if stored is None:
        return False
    unsigned = sum(header) - sum(header[148:156]) + _CHECKSUM_BIAS
    high = sum(1 for byte in header[:148] + header[156:] if byte > 127)
    return stored in (unsigned, unsigned - 256 * high)


def _octal(text: bytes) -> int | None:
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else None


def _size(field: bytes) -> int:
    if field[0] & 0x80:
        return min(int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big"), _LARGEST_SIZE)
    return _octal(field.split(b"\0", 1)[0].strip(b" ")) or 0


def _decimal(text: bytes, default: int | None) -> int | None:
    # More than 18 digits are no size of a file.
    return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else default


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar keeps other fields where ustar has the prefix.
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    return name


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    records = {}
    position = 0
    while position < len(content):
        space = content.find(b" ", position)
        length = _decimal(content[position:space], 0) or 0
        if space < 0 or length <= space - position:
            break
        end = position + length
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        records[key] = value
        position = end
    return records


def _key_size(name: bytes) -> int:
    """Bytes before the first dot of the file name; KEYLESS for names that belong to no sample.

    Those have no extension, are `__like_this__`, lie in a folder `__like_this__`, or, unlike in
    WebDataset, are hidden files.
    """
    file_at = name.rfind(b"/") + 1
    dot = name.find(b".", file_at)
    first = name.partition(b"/")[0]
    if dot <= file_at or (len(first) > 3 and first[:2] == first[-2:] == b"__"):
        return KEYLESS
    return dot
