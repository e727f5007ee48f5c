"""From the members of a shard to its samples, in columns.

Shapes: R rows, each a sample or a damaged range; M members of samples; P bytes of the shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.index import ShardRef
from shardsieve.data.location import RemotePath, ShardPath
from shardsieve.data.reason import Reason
from shardsieve.errors import ShardError
from shardsieve.shards.gather import gather
from shardsieve.shards.grouping import Rows, group_rows, hashed, keys_of, name_of
from shardsieve.shards.tar import TarScan
from shardsieve_kernels.tar_scan import (
    ScanBackend,
    TarEntries,
    tar_scan,
)

# Entries of a shard that are looked at together: enough to pay for the calls, and few enough that
# the pages which their headers lie in are no memory to speak of.
_ENTRIES = 2048


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
class TarSample:
    """One sample as it lies in its shard.

    Attributes:
        key: As WebDataset forms it.
        start: First byte of its first header.
        end: First byte after its last padded content.
        members: Extension to member, in tar order.
        reason: KEPT, or what is wrong with it as a piece of the tar.
        detail: A sentence about that.
    """

    key: str
    start: int
    end: int
    members: dict[str, Member] = field(default_factory=dict)
    reason: Reason = Reason.KEPT
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Whole samples of a piece of a shard, and the damaged ranges between them, in tar order.

    Attributes:
        key_R: Keys as text.
        key_hash_R: (R,) u64, `name_hash` of the keys.
        start_R: (R,) i64, first byte of the first header, or of the range.
        end_R: (R,) i64, first byte after the last padded content.
        reason_R: (R,) u8, KEPT, TRUNCATED or DAMAGED_TAR.
        detail: Sentences about rows that are not KEPT.
        first_R1: (R + 1,) i64, the first member of each row, and M; damaged ranges have none.
        extension_M: (M,) i32, into `extensions`.
        extensions: In lower case.
        members: The M entries of the tar.
        entry_M: (M,) i64, where they stand in `members`.
    """

    key_R: pa.StringArray
    key_hash_R: npt.NDArray[np.uint64]
    start_R: npt.NDArray[np.int64]
    end_R: npt.NDArray[np.int64]
    reason_R: npt.NDArray[np.uint8]
    detail: dict[int, str]
    first_R1: npt.NDArray[np.int64]
    extension_M: npt.NDArray[np.int32]
    extensions: list[str]
    members: TarEntries
    entry_M: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start_R)

    @property
    def row_M(self) -> npt.NDArray[np.int64]:
        """(M,) i64, the row of each member."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_R1))

    def member_with(self, extension: str) -> npt.NDArray[np.int64]:
        """Returns (R,) i64, the member of each row that has this extension, -1 without one."""
        member_R = np.full(len(self), -1, np.int64)
        if extension in self.extensions:
            found = np.flatnonzero(self.extension_M == self.extensions.index(extension))
            member_R[self.row_M[found]] = found
        return member_R

    def image(self, extensions: Sequence[str]) -> npt.NDArray[np.int64]:
        """Returns (R,) i64, the image member of each row, -1 without one.

        It is the first extension of the list that is there. `photo.thumb.jpg` has the extension
        `thumb.jpg`; it counts as a `jpg` when no member is called plainly `jpg`.
        """
        n_members = len(self.extension_M)
        none = 2 * len(extensions)
        rank = [_image_rank(extension, extensions) for extension in self.extensions]
        # The lowest rank wins, and of equal ones the first member.
        rank_M = np.array(rank, np.int64)[self.extension_M] * n_members + np.arange(n_members)
        best_R = np.full(len(self), none * n_members)
        filled = np.flatnonzero(np.diff(self.first_R1))
        if len(filled):
            best_R[filled] = np.minimum.reduceat(rank_M, self.first_R1[filled])
        return np.where(best_R < none * n_members, best_R % max(n_members, 1), -1)

    def sample(self, row: int) -> TarSample:
        """Returns one row as an object, for what is done to few of them."""
        found = self.members
        sample = TarSample(
            self.key_R[row].as_py(),
            int(self.start_R[row]),
            int(self.end_R[row]),
            reason=Reason(int(self.reason_R[row])),
            detail=self.detail.get(row),
        )
        for member in range(int(self.first_R1[row]), int(self.first_R1[row + 1])):
            entry = int(self.entry_M[member])
            sample.members[self.extensions[self.extension_M[member]]] = Member(
                name_of(found, entry),
                *(int(column[entry]) for column in found[:1] + found[2:5]),
            )
        return sample


def scan_blocks(
    scan: TarScan, shard: ShardPath, *, backend: ScanBackend = "cpu", entries: int = _ENTRIES
) -> Iterator[SampleBlock]:
    """Groups consecutive members with the same key, as WebDataset does.

    Ranges without a valid header become rows of their own, so that nothing disappears unseen. What
    `scan` says of the shard is complete when this is exhausted; memory does not depend on the size
    of the shard.

    Args:
        scan: The shard.
        shard: Its path, by which damaged ranges are named.
        backend: Of `tar_scan`.
        entries: How many entries of the tar to look at together.
    """
    start, most = 0, entries
    while start >= 0:
        found = tar_scan(scan.buffer, start=start, max_entries=most, backend=backend)
        rows = group_rows(found, len(scan.buffer))
        start, keep = found.resume_at, len(rows.start_R)
        if start >= 0 and keep and rows.first_R1[keep] > rows.first_R1[keep - 1]:
            # The last sample may go on in the next piece, so it is read once more, there.
            if keep == 1:
                start, most = int(rows.start_R[0]), 2 * most
                continue
            keep -= 1
            start = int(rows.start_R[keep])
        before = found.start_E < start if start >= 0 else np.ones(len(found.start_E), np.bool_)
        n_members = int(rows.first_R1[keep])
        scan.others += int(np.count_nonzero(before)) - n_members
        gaps = [gap for gap in found.gaps_G2.tolist() if start < 0 or gap[0] < start]
        scan.gaps.extend((low, high) for low, high in gaps)
        scan.cut_at = found.cut_at if found.cut_at >= 0 else None
        scan.ended = found.ended
        if keep:
            yield _block(found, rows, keep, shard, len(scan.buffer))
        most = entries
        scan.release(start if start >= 0 else len(scan.buffer))


def scan_samples(scan: TarScan, shard: ShardPath) -> Iterator[TarSample]:
    """Yields what `scan_blocks` finds one by one, for shards that are not large."""
    for block in scan_blocks(scan, shard):
        for row in range(len(block)):
            yield block.sample(row)


def _block(found: TarEntries, rows: Rows, keep: int, shard: ShardPath, total: int) -> SampleBlock:
    start_R, end_R, first_R1 = rows.start_R[:keep], rows.end_R[:keep], rows.first_R1[: keep + 1]
    filled = np.flatnonzero(np.diff(first_R1))
    first_entry_S = rows.entry_M[first_R1[filled]]
    raw_S = gather(found.names_Q, found.name_at_E1[first_entry_S], found.key_size_E[first_entry_S])
    key_R, key_hash_R = keys_of(raw_S, found.key_hash_E[first_entry_S])
    reason_R = np.full(keep, Reason.KEPT, np.uint8)
    detail: dict[int, str] = {}
    if len(filled) < keep:
        reason_R[:] = Reason.DAMAGED_TAR
        reason_R[filled] = Reason.KEPT
        texts = [f"{shard.name}@{start}" for start in start_R.tolist()]
        for row, key in zip(filled.tolist(), key_R.to_pylist(), strict=True):
            texts[row] = key
        key_R, key_hash_R = hashed(texts)
        for row in np.flatnonzero(reason_R == Reason.DAMAGED_TAR).tolist():
            start, end = int(start_R[row]), int(end_R[row])
            detail[row] = f"{end - start:,} bytes from {start:,} hold no valid tar header"
    entry_M = rows.entry_M[: first_R1[-1]]
    cut = np.flatnonzero(found.data_E[entry_M] + found.size_E[entry_M] > total)
    if len(cut):
        # Only the last member can be cut short.
        entry, row = int(entry_M[cut[-1]]), keep - 1
        reason_R[row] = Reason.TRUNCATED
        detail[row] = (
            f"the shard ends at byte {total:,}, inside {name_of(found, entry)} "
            f"({found.size_E[entry]:,} bytes from {found.data_E[entry]:,})"
        )
    return SampleBlock(
        key_R,
        key_hash_R,
        start_R,
        end_R,
        reason_R,
        detail,
        first_R1,
        rows.extension_M[: len(entry_M)],
        rows.extensions,
        found,
        entry_M,
    )


def _image_rank(extension: str, extensions: Sequence[str]) -> int:
    if extension in extensions:
        return list(extensions).index(extension)
    for rank, wanted in enumerate(extensions):
        if extension.endswith("." + wanted):
            return len(extensions) + rank
    return 2 * len(extensions)


def describe_damage(scan: TarScan) -> tuple[str, ...]:
    """Says what is wrong with a shard whose members have all been seen."""
    damage = [f"no valid tar header from byte {start:,} to {end:,}" for start, end in scan.gaps]
    if scan.cut_at is not None:
        damage.append(f"cut short: the entry at byte {scan.cut_at:,} is not whole")
    elif not scan.ended:
        damage.append(
            f"no end-of-archive marker at byte {len(scan.buffer):,}: "
            "it may have been cut between two samples"
        )
    return tuple(damage)


def stat_shard(path: ShardPath) -> ShardRef:
    """Returns what identifies a shard before it is read.

    Raises:
        ShardError: It is not there.
    """
    if isinstance(path, RemotePath):
        from shardsieve.shards.remote import ShardCache, look_up

        shard = look_up(path.url)
        size = shard.size_bytes
        if size < 0:
            # Nobody says how large it is; its copy does.
            size = ShardCache.of_user().local(shard).stat().st_size
        return ShardRef(path, size, shard.token)
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(
            f"{path}: {error.strerror}. Bring it back and run again, nothing is lost"
        ) from error
    return ShardRef(path, status.st_size, status.st_mtime_ns)
