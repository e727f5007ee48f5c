"""Shards of many small samples, made fast: the same blocks with other digits in their names."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

_DIGITS = 9


def write_shards(
    folder: Path, n_samples: int, n_shards: int, sizes: dict[str, int], *, first: int = 0
) -> list[Path]:
    """Writes ustar shards whose samples have members of given sizes.

    The key of sample i is i with nine digits. A `cls` member holds one digit, i mod 10; other
    members hold bytes that differ from sample to sample.

    Args:
        folder: Where they go.
        n_samples: In all shards together, a multiple of `n_shards`.
        n_shards: How many shards.
        sizes: Bytes of the members by extension, in the order of the tar.
        first: The first i.

    Returns:
        The paths; shards of the right size that are there already are not written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = n_samples // n_shards
    paths = []
    for start in range(first, first + per_shard * n_shards, per_shard):
        path = folder / f"train-{start:0{_DIGITS}d}.tar"
        paths.append(path)
        with path.open("wb") as file:
            # Some thousand samples at a time: the shard need not be in memory.
            for low in range(start, start + per_shard, 20_000):
                high = min(low + 20_000, start + per_shard)
                file.write(_samples(np.arange(low, high), sizes).tobytes())
            file.write(bytes(1024))
    return paths


def _samples(number_N: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    digits_ND = (number_N[:, None] // 10 ** np.arange(_DIGITS - 1, -1, -1) % 10 + 48).astype(
        np.uint8
    )
    pieces = []
    for extension, size in sizes.items():
        info = tarfile.TarInfo("0" * _DIGITS + "." + extension)
        info.size = size
        header = np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8)
        header_NB = np.tile(header, (len(number_N), 1))
        header_NB[:, :_DIGITS] = digits_ND
        header_NB[:, 148:156] = 32
        sums_N = header_NB.sum(axis=1, dtype=np.int64)
        header_NB[:, 148:154] = sums_N[:, None] // 8 ** np.arange(5, -1, -1) % 8 + 48
        header_NB[:, 154:156] = (0, 32)
        content_NB = np.zeros((len(number_N), -(-size // 512) * 512), np.uint8)
        if extension == "cls":
            content_NB[:, 0] = digits_ND[:, -1]
        else:
            content_NB[:, :size] = 90
            content_NB[:, : min(size, _DIGITS)] = digits_ND[:, : min(size, _DIGITS)]
        pieces += [header_NB, content_NB]
    return np.concatenate(pieces, axis=1)
