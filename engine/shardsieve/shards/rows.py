"""One shard to rows on disk: a part of the index that holds until the shard changes.

Shapes: R rows of a block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.data.index import ShardRef
from shardsieve.data.location import ShardPath
from shardsieve.data.reason import Reason
from shardsieve.data.record import content_key
from shardsieve.data.table import link_or_copy, replace_file, write_json
from shardsieve.errors import ShardError
from shardsieve.progress import Advance
from shardsieve.shards.gather import gather
from shardsieve.shards.labels import LabelSource
from shardsieve.shards.samples import (
    SampleBlock,
    TarSample,
    describe_damage,
    scan_blocks,
    stat_shard,
)
from shardsieve.shards.tar import TarScan, open_tar
from shardsieve_kernels.tar_scan import ScanBackend

# Raised when a shard gives other rows than before.
_VERSION = 1
_BATCH = 50_000
# Names that would be written elsewhere than in the folder of whoever unpacks the shard.
_LEADS_OUT = r"(^|/)\.\.(/|$)|^/"

ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("key_hash", pa.uint64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("reason", pa.uint8()),
        ("detail", pa.string()),
        # The label as it stands in the shard.
        ("given", pa.string()),
        ("is_name", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class RowReader:
    """How shards are read.

    Attributes:
        image: Extensions of images, the first one found wins.
        labels: Where labels stand; None when they are not in the shards.
        spec: The setting that `labels` was made from.
        backend: Of `tar_scan`.
    """

    image: Sequence[str]
    labels: LabelSource | None
    spec: str
    backend: ScanBackend = "cpu"

    def part(self, folder: Path, ref: ShardRef) -> Path:
        """Where the rows of a shard lie; another file when shard or settings are others."""
        identity = {
            "version": _VERSION,
            "shard": [str(ref.path), ref.size_bytes, ref.mtime_ns],
            "image": list(self.image),
            "labels": self.spec if self.labels is not None else None,
        }
        return folder / f"{content_key(identity)[:32]}.arrow"

    def known(
        self, path: ShardPath, folder: Path, previous: Path | None
    ) -> tuple[ShardRef, Path] | None:
        """Returns a shard and the file of its rows if it need not be read, else None.

        Args:
            path: The shard.
            folder: Where the file lies.
            previous: Folder with files of an earlier index, which may be of use.

        Raises:
            ShardError: The shard is gone.
        """
        ref = stat_shard(path)
        part = self.part(folder, ref)
        if not part.with_suffix(".json").is_file() and previous is not None:
            _take_over(previous, part)
        return (_found(ref, part), part) if part.with_suffix(".json").is_file() else None

    def rows_of(self, path: ShardPath, folder: Path) -> tuple[ShardRef, Path]:
        """Reads a shard; returns it and the file of its rows.

        Args:
            path: The shard.
            folder: Where the file goes.

        Raises:
            ShardError: The shard cannot be read as a tar, or changes while it is read.
        """
        ref = stat_shard(path)
        part = self.part(folder, ref)
        scan = open_tar(path)
        n_samples = self._write(scan, path, part)
        now = stat_shard(path)
        if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            raise ShardError(f"{path} changed while it was indexed; run again")
        # Written last: with it the part counts as whole.
        facts = {"others": scan.others, "damage": list(describe_damage(scan))}
        write_json(part.with_suffix(".json"), {"samples": n_samples, **facts})
        return _found(ref, part), part

    def _write(self, scan: TarScan, path: ShardPath, part: Path) -> int:
        temporary = part.with_name(part.name + ".part")
        n_samples, waiting = 0, list[pa.RecordBatch]()
        with pa.ipc.new_file(temporary, ROWS) as writer:
            for block in scan_blocks(scan, path, backend=self.backend):
                waiting.append(self._batch(block, scan))
                n_samples += len(block)
                if sum(batch.num_rows for batch in waiting) >= _BATCH:
                    writer.write_batch(pa.concat_batches(waiting))
                    waiting.clear()
            if waiting:
                writer.write_batch(pa.concat_batches(waiting))
        replace_file(temporary, part)
        return n_samples

    def _batch(self, block: SampleBlock, scan: TarScan) -> pa.RecordBatch:
        image_R = block.image(self.image)
        has_image_R = image_R >= 0
        found = block.members
        image_entry_R = block.entry_M[image_R[has_image_R]]
        image_offset_R = np.full(len(block), -1, np.int64)
        image_size_R = np.zeros(len(block), np.int64)
        image_offset_R[has_image_R] = found.data_E[image_entry_R]
        image_size_R[has_image_R] = found.size_E[image_entry_R]
        details = dict(block.detail)
        given_R, is_name_R = self._labels(block, scan, details)
        reason_R = block.reason_R.copy()
        for row in np.flatnonzero((reason_R == Reason.KEPT) & ~has_image_R).tolist():
            reason_R[row] = Reason.NO_IMAGE
            details[row] = (
                f"no part ending in .{'/.'.join(self.image)} "
                f"(has: {', '.join(block.sample(row).members)})"
            )
        unsafe_R = pc.match_substring_regex(block.key_R, _LEADS_OUT).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero((reason_R == Reason.KEPT) & unsafe_R).tolist():
            reason_R[row] = Reason.UNSAFE_NAME
            details[row] = "an absolute path, or one with .. in it: whoever unpacks it writes there"
        columns = [
            block.key_R,
            block.key_hash_R,
            block.start_R,
            block.end_R - block.start_R,
            image_offset_R,
            image_size_R,
            reason_R,
            _sparse_text(details, len(block)),
            given_R,
            is_name_R,
        ]
        return pa.record_batch([_as_array(values) for values in columns], schema=ROWS)

    def _labels(
        self, block: SampleBlock, scan: TarScan, details: dict[int, str]
    ) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        """Reads the labels of whole samples; says in `details` why there is none."""
        n_rows = len(block)
        is_name_R = np.zeros(n_rows, np.bool_)
        if self.labels is None:
            return pa.nulls(n_rows, pa.string()), is_name_R
        member_R = block.member_with(self.labels.extension)
        readable_R = block.reason_R == Reason.KEPT
        for row in np.flatnonzero(readable_R & (member_R < 0)).tolist():
            details[row] = _absent(block.sample(row), self.labels.extension)
        rows = np.flatnonzero(readable_R & (member_R >= 0))
        entries = block.entry_M[member_R[rows]]
        found = block.members
        raw = gather(scan.buffer, found.data_E[entries], found.size_E[entries])
        encoded = raw.dictionary_encode()
        codes = encoded.indices.to_numpy()
        # Few contents are different from each other: each is read once.
        read = [self.labels.read(content, "") for content in encoded.dictionary.to_pylist()]
        code_R = np.full(n_rows, -1, np.int64)
        code_R[rows] = codes
        text = pa.array([label.text for label in read], pa.string())
        given_R = text.take(pa.array(code_R, mask=code_R < 0))
        if len(read):
            is_name_R[rows] = np.array([label.is_name for label in read])[codes]
        missing = np.array([label.text is None for label in read], np.bool_)
        for row in rows[missing[codes]].tolist() if missing.any() else ():
            details[row] = _why_none(self.labels, block.sample(row), scan)
        return given_R, is_name_R


class ShardReader:
    """Reads shards for the index, wherever they can be read."""

    def __init__(self, reader: RowReader) -> None:
        """Takes how they are read."""
        self._reader = reader

    def run(
        self, pieces: Sequence[tuple[int, ShardPath]], out: Path, advance: Advance
    ) -> Iterator[tuple[ShardRef, str]]:
        """Yields each shard and the name of the file of its rows."""
        for _, path in pieces:
            ref, part = self._reader.rows_of(path, out)
            advance(1)
            yield ref, part.name

    def close(self) -> None:
        """Nothing stays open."""


def one_shard(result: object) -> int:
    """Returns how many shards a result stands for."""
    return 1


def read_rows(part: Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a shard, some thousands at a time."""
    with pa.OSFile(str(part)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _found(ref: ShardRef, part: Path) -> ShardRef:
    facts = json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
    return replace(
        ref,
        n_samples=facts["samples"],
        other_members=facts["others"],
        damage=tuple(facts["damage"]),
    )


def _take_over(previous: Path, part: Path) -> None:
    """Takes the rows of an earlier index, the record that makes them count last."""
    for file in (part, part.with_suffix(".json")):
        old = previous / file.name
        if not old.is_file():
            return
        link_or_copy(old, file)


def _absent(sample: TarSample, extension: str) -> str:
    return f"no member .{extension} (has: {', '.join(sample.members) or 'nothing'})"


def _why_none(labels: LabelSource, sample: TarSample, scan: TarScan) -> str:
    member = sample.members[labels.extension]
    content = bytes(scan.buffer[member.data : member.data + member.size])
    return labels.read(content, member.name).detail or ""


def _sparse_text(texts: dict[int, str], n_rows: int) -> pa.Array:
    if not texts:
        return pa.nulls(n_rows, pa.string())
    return pa.array([texts.get(row) for row in range(n_rows)], pa.string())


def _as_array(values: pa.Array | npt.NDArray[np.generic]) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values)
