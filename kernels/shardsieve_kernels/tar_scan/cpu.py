"""tar_scan with Numba: one pass from header to header, then one over the names that it found."""

from __future__ import annotations

import numpy as np
from numba import njit

from shardsieve_kernels.tar_scan import BLOCK, KEYLESS, TarEntries

# Columns of the places.
_START, _HEADER, _DATA, _SIZE, _END, _KIND, _NAME, _NAME_SIZE, _PREFIX_SIZE = range(9)
_PREFIX = 345
_LARGEST_SIZE = 1 << 62
_FNV_START = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_L, _K, _X, _SMALL_X = ord("L"), ord("K"), ord("X"), ord("x")


def tar_scan(tar_P: np.ndarray, start: int, most: int) -> TarEntries:
    """See `shardsieve_kernels.tar_scan.tar_scan`; checks nothing."""
    # A mapped file cannot be written to, other arrays can: one compiled form for both.
    tar_P = np.ascontiguousarray(tar_P).view()
    tar_P.flags.writeable = False
    places_E9 = np.empty((most, 9), np.int64)
    gaps_G2 = np.empty((most, 2), np.int64)
    n_entries, n_gaps, cut_at, ended, resume_at = _scan(tar_P, start, places_E9, gaps_G2)
    places_E9 = places_E9[:n_entries]
    name_at_E1 = np.zeros(n_entries + 1, np.int64)
    n_bytes = places_E9[:, _NAME_SIZE] + places_E9[:, _PREFIX_SIZE]
    np.cumsum(n_bytes + (places_E9[:, _PREFIX_SIZE] > 0), out=name_at_E1[1:])
    names_Q = np.empty(int(name_at_E1[-1]), np.uint8)
    key_size_E = np.empty(n_entries, np.int32)
    hashes_3E = np.empty((3, n_entries), np.uint64)
    _names(tar_P, places_E9, name_at_E1, names_Q, key_size_E, hashes_3E)
    start_E, header_E, data_E, size_E, end_E, kind_E = np.ascontiguousarray(places_E9.T[:6])
    return TarEntries(
        start_E=start_E,
        header_E=header_E,
        data_E=data_E,
        size_E=size_E,
        end_E=end_E,
        kind_E=kind_E.astype(np.uint8),
        names_Q=names_Q,
        name_at_E1=name_at_E1,
        key_size_E=key_size_E,
        name_hash_E=hashes_3E[0],
        key_hash_E=hashes_3E[1],
        extension_hash_E=hashes_3E[2],
        gaps_G2=gaps_G2[:n_gaps].copy(),
        cut_at=cut_at,
        ended=ended,
        resume_at=resume_at,
    )


@njit(nogil=True, cache=True)
def _scan(
    tar_P: np.ndarray, start: int, places_E9: np.ndarray, gaps_G2: np.ndarray
) -> tuple[int, int, int, bool, int]:
    """Fills the places and the gaps; returns how many, cut_at, ended and resume_at."""
    total, most = len(tar_P), len(places_E9)
    n_entries, n_gaps, position, cut_at = 0, 0, start, -1
    # -1 stands for "none": first header, place of a long name, size from pax.
    first, name_at, name_size, pax_size = -1, -1, 0, -1
    while position + BLOCK <= total:
        if first < 0 and max(n_entries, n_gaps) == most:
            return n_entries, n_gaps, cut_at, False, position
        if not _is_valid(tar_P, position):
            resumed = _next_valid(tar_P, position)
            if resumed == position:
                return n_entries, n_gaps, cut_at, True, -1
            gaps_G2[n_gaps, 0], gaps_G2[n_gaps, 1] = position, resumed
            n_gaps += 1
            position, first, name_at, pax_size = resumed, -1, -1, -1
            continue
        kind, size, data = int(tar_P[position + 156]), _size(tar_P, position + 124), position + 512
        if first < 0:
            first = position
        if kind in (_L, _K, _X, _SMALL_X):
            if data + size > total:
                return n_entries, n_gaps, first, False, -1
            if kind == _L:
                name_at, name_size = data, size
                while name_size > 0 and tar_P[data + name_size - 1] == 0:
                    name_size -= 1
            elif kind != _K:
                name_at, name_size, pax_size = _pax(
                    tar_P, data, data + size, name_at, name_size, pax_size
                )
            position = data + _padded(size)
            continue
        if pax_size >= 0:
            size = pax_size
        regular = kind == 48 or kind == 0 or kind == 55
        if regular and data + size > total:
            cut_at = first
        row = places_E9[n_entries]
        row[_START], row[_HEADER], row[_DATA], row[_SIZE] = first, position, data, size
        row[_END] = data + (0 if 49 <= kind <= 54 else _padded(size))
        row[_KIND] = kind
        if name_at >= 0:
            row[_NAME], row[_NAME_SIZE], row[_PREFIX_SIZE] = name_at, name_size, 0
        else:
            row[_NAME], row[_NAME_SIZE] = position, _text_size(tar_P, position, 100)
            row[_PREFIX_SIZE] = _prefix_size(tar_P, position)
        n_entries += 1
        position, first, name_at, pax_size = row[_END], -1, -1, -1
    if cut_at < 0 and (position < total or first >= 0):
        cut_at = position if first < 0 else first
    return n_entries, n_gaps, cut_at, False, -1


@njit(nogil=True, cache=True)
def _padded(size: int) -> int:
    return (size + (BLOCK - 1)) // BLOCK * BLOCK


@njit(nogil=True, cache=True)
def _is_valid(tar_P: np.ndarray, at: int) -> bool:
    header = tar_P[at : at + BLOCK]
    low, high = 148, 156
    while low < high and (header[low] == 32 or header[low] == 0):
        low += 1
    while high > low and (header[high - 1] == 32 or header[high - 1] == 0):
        high -= 1
    stored = _octal(header, low, high)
    if stored < 0:
        return False
    # The checksum field itself counts as eight spaces.
    total = np.int32(8 * 32)
    for i in range(BLOCK):
        total += np.int32(header[i])
    for i in range(148, 156):
        total -= np.int32(header[i])
    if stored == total:
        return True
    n_high = 0
    for i in range(BLOCK):
        if header[i] > 127 and (i < 148 or i >= 156):
            n_high += 1
    return stored == total - 256 * n_high


@njit(nogil=True, cache=True)
def _octal(header: np.ndarray, low: int, high: int) -> int:
    """Returns the number written there, -1 when it is none."""
    if low == high:
        return -1
    number = 0
    for i in range(low, high):
        if header[i] < 48 or header[i] > 55:
            return -1
        number = number * 8 + (int(header[i]) - 48)
    return number


@njit(nogil=True, cache=True)
def _size(tar_P: np.ndarray, at: int) -> int:
    field = tar_P[at : at + 12]
    if field[0] & 0x80:
        number = int(field[0]) & 0x7F
        for i in range(1, 12):
            if number >= _LARGEST_SIZE >> 8:
                return _LARGEST_SIZE
            number = number * 256 + int(field[i])
        return number
    low, high = 0, _text_size(tar_P, at, 12)
    while low < high and field[low] == 32:
        low += 1
    while high > low and field[high - 1] == 32:
        high -= 1
    return max(_octal(field, low, high), 0)


@njit(nogil=True, cache=True)
def _text_size(tar_P: np.ndarray, at: int, most: int) -> int:
    """Bytes before the first NUL."""
    size = 0
    while size < most and tar_P[at + size] != 0:
        size += 1
    return size


@njit(nogil=True, cache=True)
def _prefix_size(tar_P: np.ndarray, at: int) -> int:
    magic = tar_P[at + 257 : at + 263]
    # GNU tar keeps other fields where ustar has the prefix.
    if not (
        magic[0] == 117
        and magic[1] == 115
        and magic[2] == 116
        and magic[3] == 97
        and magic[4] == 114
        and magic[5] == 0
    ):
        return 0
    return _text_size(tar_P, at + _PREFIX, 155)


@njit(nogil=True, cache=True)
def _next_valid(tar_P: np.ndarray, position: int) -> int:
    """Returns where the next header is; without one, the first zero block, else the end."""
    zeros = -1
    while position + BLOCK <= len(tar_P):
        if _is_zero(tar_P, position):
            if zeros < 0:
                zeros = position
        elif _has_magic(tar_P, position) and _is_valid(tar_P, position):
            return position
        position += BLOCK
    return len(tar_P) if zeros < 0 else zeros


@njit(nogil=True, cache=True)
def _is_zero(tar_P: np.ndarray, at: int) -> bool:
    for i in range(at, at + BLOCK):  # noqa: SIM110
        if tar_P[i] != 0:
            return False
    return True


@njit(nogil=True, cache=True)
def _has_magic(tar_P: np.ndarray, at: int) -> bool:
    """Whether it calls itself ustar, or is of the same format as the first header of the tar."""
    ustar, like_first = True, True
    for i, letter in enumerate((117, 115, 116, 97, 114)):
        byte = tar_P[at + 257 + i]
        ustar = ustar and byte == letter
        like_first = like_first and byte == tar_P[257 + i]
    return ustar or like_first


@njit(nogil=True, cache=True)
def _pax(
    tar_P: np.ndarray, low: int, high: int, name_at: int, name_size: int, pax_size: int
) -> tuple[int, int, int]:
    """Reads the records `LENGTH KEY=VALUE`; of a repeated key the last one counts."""
    size_at, size_end = low, low
    position = low
    while position < high:
        space = position
        while space < high and tar_P[space] != 32:
            space += 1
        length = _decimal(tar_P, position, space) if space < high else -1
        if length <= space - position:
            break
        end = position + length
        last = max(min(end - 1, high), space + 1)
        equals = space + 1
        while equals < last and tar_P[equals] != 61:
            equals += 1
        value = min(equals + 1, last)
        if equals - space == 5:
            if _is_word(tar_P, space + 1, 112, 97, 116, 104):
                name_at, name_size = value, last - value
            elif _is_word(tar_P, space + 1, 115, 105, 122, 101):
                size_at, size_end = value, last
        position = end
    given = _decimal(tar_P, size_at, size_end)
    return name_at, name_size, given if given >= 0 else pax_size


@njit(nogil=True, cache=True)
def _decimal(tar_P: np.ndarray, low: int, high: int) -> int:
    """Returns the number written there, -1 when it is none or has more than 18 digits."""
    if high <= low or high - low > 18:
        return -1
    number = 0
    for i in range(low, high):
        if tar_P[i] < 48 or tar_P[i] > 57:
            return -1
        number = number * 10 + (int(tar_P[i]) - 48)
    return number


@njit(nogil=True, cache=True)
def _is_word(tar_P: np.ndarray, at: int, a: int, b: int, c: int, d: int) -> bool:
    return tar_P[at] == a and tar_P[at + 1] == b and tar_P[at + 2] == c and tar_P[at + 3] == d


@njit(nogil=True, cache=True)
def _names(
    tar_P: np.ndarray,
    places_E9: np.ndarray,
    name_at_E1: np.ndarray,
    names_Q: np.ndarray,
    key_size_E: np.ndarray,
    hashes_3E: np.ndarray,
) -> None:
    for e in range(len(places_E9)):
        name = names_Q[name_at_E1[e] : name_at_E1[e + 1]]
        n_prefix, at = places_E9[e, _PREFIX_SIZE], places_E9[e, _NAME]
        rest = 0
        if n_prefix > 0:
            prefix_at = places_E9[e, _HEADER] + _PREFIX
            for i in range(n_prefix):
                name[i] = tar_P[prefix_at + i]
            name[n_prefix] = 47
            rest = n_prefix + 1
        for i in range(places_E9[e, _NAME_SIZE]):
            name[rest + i] = tar_P[at + i]
        dot = _key_size(name)
        key_size_E[e] = dot
        value = _FNV_START
        hashes_3E[1, e] = 0
        hashes_3E[2, e] = 0
        for i in range(len(name)):
            if i == dot:
                hashes_3E[1, e] = value
            value = (value ^ np.uint64(name[i])) * _FNV_PRIME
        hashes_3E[0, e] = value
        if dot >= 0:
            value = _FNV_START
            for i in range(dot + 1, len(name)):
                byte = name[i]
                byte = byte + 32 if 65 <= byte <= 90 else byte
                value = (value ^ np.uint64(byte)) * _FNV_PRIME
            hashes_3E[2, e] = value


@njit(nogil=True, cache=True)
def _key_size(name: np.ndarray) -> int:
    file_at, first_size = 0, len(name)
    for i in range(len(name)):
        if name[i] == 47:
            file_at = i + 1
            first_size = min(first_size, i)
    dot = file_at
    while dot < len(name) and name[dot] != 46:
        dot += 1
    if dot == file_at or dot == len(name):
        return KEYLESS
    if (
        first_size > 3
        and name[0] == 95
        and name[1] == 95
        and name[first_size - 1] == 95
        and name[first_size - 2] == 95
    ):
        return KEYLESS
    return dot
