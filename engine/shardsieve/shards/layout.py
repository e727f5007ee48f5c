"""Which samples go into which output shard: quotas, order and cuts, before a byte is copied.

N samples of the index, R samples of a set in output order, O output shards, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shardsieve.data.index import SampleIndex
from shardsieve.shards.copy import Ranges, coalesce, padded
from shardsieve.shards.tar import END_OF_ARCHIVE

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """A set of output shards.

    Attributes:
        name: `clean` or `removed`.
        rows_R: Rows of the index in output order.
        ends_O: Where in `rows_R` each output shard ends.
        shard_N: Input shard of each row of the index.
        offset_N: First byte of each sample there.
        size_N: Its bytes.
    """

    name: str
    rows_R: Rows
    ends_O: npt.NDArray[np.int64]
    shard_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends_O)

    def file(self, number: int) -> str:
        """Returns the name of an output shard."""
        return f"{self.name}-{number:06d}.tar"

    def rows(self, number: int) -> Rows:
        """Returns the rows of the index that an output shard holds, in order."""
        start = int(self.ends_O[number - 1]) if number else 0
        return self.rows_R[start : int(self.ends_O[number])]

    def ranges(self, number: int) -> Ranges:
        """Returns the byte ranges that an output shard consists of."""
        rows = self.rows(number)
        return coalesce(self.shard_N[rows], self.offset_N[rows], self.size_N[rows])

    def source(self, number: int) -> int | None:
        """Returns the one input shard that an output shard comes from, None when several."""
        shards = self.shard_N[self.rows(number)]
        return int(shards[0]) if (shards == shards[0]).all() else None

    def starts(self, number: int) -> npt.NDArray[np.int64]:
        """Returns the first byte of each sample in an output shard."""
        sizes = padded(self.size_N[self.rows(number)])
        return np.cumsum(sizes) - sizes

    def size_bytes(self, number: int) -> int:
        """Returns the size of an output shard."""
        return int(padded(self.size_N[self.rows(number)]).sum()) + len(END_OF_ARCHIVE)

    def sizes(self) -> Iterator[int]:
        """Yields the sizes of all output shards."""
        return (self.size_bytes(number) for number in range(len(self)))


def within_quota(
    kept_N: npt.NDArray[np.bool_],
    label_N: npt.NDArray[np.int32],
    p_clean_N: npt.NDArray[np.float64],
    *,
    cap: int | None,
    balance: bool,
) -> npt.NDArray[np.bool_]:
    """Takes the most probably clean samples of each class, as many as the quota allows.

    Args:
        kept_N: (N,) samples that are clean.
        label_N: (N,) labels, in [0, K) where `kept_N`.
        p_clean_N: (N,) posterior; samples with the same one are taken in row order.
        cap: Most samples of a class, None for no limit.
        balance: Take as many of each class as of the smallest one that has any.

    Returns:
        (N,) samples that are clean and within the quota.
    """
    rows = np.flatnonzero(kept_N)
    counts_K = np.bincount(label_N[rows])
    if not len(rows) or (cap is None and not balance):
        return kept_N
    limits = [] if cap is None else [cap]
    if balance:
        limits.append(int(counts_K[counts_K > 0].min()))
    label_R = label_N[rows]
    order = np.lexsort((rows, -p_clean_N[rows], label_R))
    first_K = np.cumsum(counts_K) - counts_K
    rank_R = np.arange(len(rows)) - first_K[label_R[order]]
    taken_N = np.zeros_like(kept_N)
    taken_N[rows[order[rank_R < min(limits)]]] = True
    return taken_N


def lay_out(
    name: str,
    index: SampleIndex,
    mask_N: npt.NDArray[np.bool_],
    *,
    shard_samples: int | None,
    shard_bytes: int | None,
    order: Literal["source", "shuffle"],
    seed: int,
) -> Layout:
    """Puts samples in order and cuts them into output shards.

    Without a limit there is one output shard for every input shard that has a sample to give; when
    samples are shuffled, as many of equal length.

    Args:
        name: Of the set.
        index: All samples.
        mask_N: (N,) the samples of the set.
        shard_samples: Most samples in an output shard.
        shard_bytes: Most bytes in an output shard that has more than one sample.
        order: As in the input, or mixed.
        seed: Of the shuffle.
    """
    rows = np.flatnonzero(mask_N)
    shard_N, offset_N = index.numbers("shard"), index.numbers("offset")
    size_N = index.numbers("size")
    changes = np.flatnonzero(np.diff(shard_N[rows])) + 1
    if order == "shuffle":
        rows = np.random.default_rng(seed).permutation(rows)
        if shard_samples is None and shard_bytes is None:
            shard_samples = -(-len(rows) // (len(changes) + 1))
    if shard_samples is None and shard_bytes is None:
        ends = np.append(changes, len(rows)) if len(rows) else np.empty(0, np.int64)
    else:
        ends = _cut(padded(size_N[rows]), shard_samples, shard_bytes)
    return Layout(name, rows, ends.astype(np.int64), shard_N, offset_N, size_N)


def _cut(
    size_R: npt.NDArray[np.int64], shard_samples: int | None, shard_bytes: int | None
) -> npt.NDArray[np.int64]:
    """Fills one output shard after the other."""
    filled_R = np.cumsum(size_R)
    ends: list[int] = []
    start, before = 0, 0
    while start < len(size_R):
        end = len(size_R) if shard_samples is None else start + shard_samples
        if shard_bytes is not None:
            room = before + shard_bytes - len(END_OF_ARCHIVE)
            end = min(end, int(np.searchsorted(filled_R, room, side="right")))
        start = min(max(end, start + 1), len(size_R))
        before = int(filled_R[start - 1])
        ends.append(start)
    return np.array(ends, np.int64)


def per_class(
    layout: Layout, label_N: npt.NDArray[np.int32], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Counts samples and bytes of each class in a set."""
    labels = label_N[layout.rows_R]
    n_classes = len(classes)
    samples_K = np.bincount(labels, minlength=n_classes)
    bytes_K = np.bincount(labels, weights=layout.size_N[layout.rows_R], minlength=n_classes)
    return [
        {"class": name, "samples": int(samples), "size_bytes": int(size)}
        for name, samples, size in zip(classes, samples_K, bytes_K, strict=True)
    ]
