"""Hashes of images where they lie in shards, to find the same one elsewhere.

Shapes: R images of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.data.location import ShardPath
from shardsieve.progress import Advance
from shardsieve.shards.files import ShardFiles

DIGEST_BYTES = 16
# The end of an image: compressed pixels, a checksum. Headers are the same in many.
_END_BYTES = 256

Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ShardImages:
    """Images of one shard.

    Attributes:
        path: The shard.
        offset_R: (R,) i64, first byte of each image.
        size_R: (R,) i64, its bytes.
    """

    path: ShardPath
    offset_R: npt.NDArray[np.int64]
    size_R: npt.NDArray[np.int64]


class ImageHasher:
    """Hashes images, wherever their shards can be read: (R, 16) u8 blake2b for each shard."""

    def __init__(self, whole: bool) -> None:
        """Chooses what is read: whole images, or only their last bytes and their size."""
        self._whole = whole

    def run(
        self, pieces: Sequence[tuple[int, ShardImages]], out: Path, advance: Advance
    ) -> Iterator[Digests]:
        """Yields the hashes of each shard's images in order.

        Raises:
            ShardError: A shard is gone or shorter than when it was indexed.
        """
        for _, piece in pieces:
            files = ShardFiles([piece.path])
            try:
                found = self._hash(piece, files)
            finally:
                files.close()
            advance(len(found))
            yield found

    def close(self) -> None:
        """Nothing stays open."""

    def _hash(self, piece: ShardImages, files: ShardFiles) -> Digests:
        found = bytearray()
        for offset, size in zip(piece.offset_R.tolist(), piece.size_R.tolist(), strict=True):
            read = size if self._whole else min(size, _END_BYTES)
            digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
            digest.update(files.read(0, offset + size - read, read))
            found += digest.digest()
        return np.frombuffer(bytes(found), np.uint8).reshape(-1, DIGEST_BYTES)


def images_of(digests: Digests) -> int:
    """Returns how many images a result stands for."""
    return len(digests)
