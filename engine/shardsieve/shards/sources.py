"""What the features of each shard were made from, so that those of unchanged shards are kept.

A shard is the same when path, size and time of change are, or else when its size and sha256 are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shardsieve.data.features import shard_file
from shardsieve.data.index import ShardRef
from shardsieve.data.table import link_or_copy, write_json
from shardsieve.errors import ShardError
from shardsieve.shards.files import open_shard
from shardsieve.shards.samples import stat_shard

_FILE = "sources.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A shard whose features are there.

    Attributes:
        path: Where it lay.
        size_bytes: Its size.
        mtime_ns: Its modification time, nanoseconds.
        samples: Rows of its features.
        sha256: Of its bytes.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    samples: int
    sha256: str


def hash_shard(ref: ShardRef) -> str:
    """Returns the sha256 of a shard.

    Raises:
        ShardError: It is gone, or is not the one that was indexed.
    """
    try:
        with os.fdopen(open_shard(ref.path), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(
            f"{ref.path}: {error.strerror}. It was there when it was indexed; "
            "bring it back and run again"
        ) from error
    refuse_changed(ref)
    return digest


def refuse_changed(ref: ShardRef) -> None:
    """Makes sure that a shard is the one that was indexed.

    Raises:
        ShardError: It is gone, or is not.
    """
    now = stat_shard(ref.path)
    if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
        raise ShardError(f"{ref.path} changed since it was indexed; run again")


def write_sources(
    folder: Path, made_with: str, shards: Sequence[ShardRef], hashes: Sequence[str]
) -> None:
    """Writes what the features in a folder were made from.

    Args:
        folder: Folder of the feature store.
        made_with: What identifies settings and network.
        shards: The shards, in the order of the store.
        hashes: Their sha256.
    """
    sources = [
        asdict(Source(str(ref.path), ref.size_bytes, ref.mtime_ns, ref.n_samples, sha256))
        for ref, sha256 in zip(shards, hashes, strict=True)
    ]
    write_json(folder / _FILE, {"made_with": made_with, "shards": sources})


def take_over(
    previous: Path, folder: Path, made_with: str, shards: Sequence[ShardRef]
) -> dict[int, str]:
    """Puts the features of unchanged shards from an earlier store into a new one.

    Args:
        previous: Folder of the earlier store.
        folder: Folder of the new one; features that are there already are left alone.
        made_with: What identifies settings and network; of another one nothing is taken.
        shards: The shards of the new store.

    Returns:
        By number of the shard the sha256 of those that are unchanged, as it was known.

    Raises:
        ShardError: A shard is gone, or is not the one that was indexed.
    """
    known = _read(previous, made_with)
    by_place = {(s.path, s.size_bytes, s.mtime_ns): number for number, s in enumerate(known)}
    by_content = {(s.size_bytes, s.sha256): number for number, s in enumerate(known)}
    sizes = {source.size_bytes for source in known}
    unchanged = {}
    for shard, ref in enumerate(shards):
        number = by_place.get((str(ref.path), ref.size_bytes, ref.mtime_ns))
        if number is None and ref.size_bytes in sizes:
            number = by_content.get((ref.size_bytes, hash_shard(ref)))
        if number is None or known[number].samples != ref.n_samples:
            continue
        old, new = shard_file(previous, number), shard_file(folder, shard)
        if not new.is_file():
            if not old.is_file():
                continue
            link_or_copy(old, new)
        unchanged[shard] = known[number].sha256
    return unchanged


def _read(folder: Path, made_with: str) -> list[Source]:
    file = folder / _FILE
    if not file.is_file():
        return []
    about = json.loads(file.read_text(encoding="utf-8"))
    if about["made_with"] != made_with:
        return []
    return [Source(**row) for row in about["shards"]]
