"""Many short byte ranges of one buffer at once, without an object for each.

Shapes: N ranges, P bytes of the buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Bytes that are gathered by one index array, which takes 8 bytes for each.
_PIECE = 1 << 18


def gather(buffer: Any, at_N: npt.NDArray[np.int64], size_N: npt.NDArray[Any]) -> pa.BinaryArray:
    """Copies byte ranges into one Arrow array.

    Args:
        buffer: (P,) u8, or an object with the buffer protocol.
        at_N: First bytes.
        size_N: Bytes of each, which lie in the buffer.

    Returns:
        N binary values of at most 2 GB together.
    """
    buffer_P = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    edge_N1 = np.zeros(len(at_N) + 1, np.int64)
    np.cumsum(size_N, out=edge_N1[1:])
    out = np.empty(int(edge_N1[-1]), np.uint8)
    first, n_ranges = 0, len(at_N)
    while first < n_ranges:
        limit = edge_N1[first] + _PIECE
        last = max(int(np.searchsorted(edge_N1, limit, "right")) - 1, first + 1)
        span = slice(first, last)
        low, high = edge_N1[first], edge_N1[last]
        if last == first + 1:
            out[low:high] = buffer_P[at_N[first] : at_N[first] + size_N[first]]
        else:
            shift_N = at_N[span] - edge_N1[span]
            out[low:high] = buffer_P[np.repeat(shift_N, size_N[span]) + np.arange(low, high)]
        first = last
    edges = pa.py_buffer(edge_N1.astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), n_ranges, [None, edges, pa.py_buffer(out)])


def as_text(raw_N: pa.BinaryArray) -> pa.StringArray | None:
    """Returns the same bytes as text, None when some of them are no UTF-8."""
    text_N = raw_N.view(pa.string())
    try:
        text_N.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return text_N
