"""From the members of a shard to its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardsieve.data.index import ShardRef
from shardsieve.data.reason import Reason
from shardsieve.errors import ShardError
from shardsieve.shards.tar import Member, TarScan, split_name


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

    def image(self, extensions: Sequence[str]) -> Member | None:
        """Returns the image member: the first extension of the list that is there.

        `photo.thumb.jpg` has the extension `thumb.jpg`; it counts as a `jpg` when no member is
        called plainly `jpg`.
        """
        for extension in extensions:
            if extension in self.members:
                return self.members[extension]
        for extension in extensions:
            for name, member in self.members.items():
                if name.endswith("." + extension):
                    return member
        return None


def scan_samples(scan: TarScan, shard: Path) -> Iterator[TarSample]:
    """Groups consecutive members with the same key, as WebDataset does.

    Ranges without a valid header become rows of their own, so that nothing disappears unseen.
    """
    current: TarSample | None = None
    gaps_seen = 0
    for member in scan.members():
        while gaps_seen < len(scan.gaps):
            if current is not None:
                yield current
            current = None
            yield _gap(shard, *scan.gaps[gaps_seen])
            gaps_seen += 1
        named = split_name(member.name)
        if named is None:
            scan.others += 1
            continue
        key, extension = named
        # A repeated extension can only be the next sample under the same key.
        if current is None or current.key != key or extension in current.members:
            if current is not None:
                yield current
            current = TarSample(key, member.start, member.end)
        current.members[extension] = member
        current.end = member.end
        if member.data + member.size > len(scan.buffer):
            current.reason = Reason.TRUNCATED
            current.detail = (
                f"the shard ends at byte {len(scan.buffer):,}, inside {member.name} "
                f"({member.size:,} bytes from {member.data:,})"
            )
    if current is not None:
        current.end = min(current.end, len(scan.buffer))
        yield current
    for start, end in scan.gaps[gaps_seen:]:
        yield _gap(shard, start, end)


def _gap(shard: Path, start: int, end: int) -> TarSample:
    key = f"{shard.name}@{start}"
    detail = f"{end - start:,} bytes from {start:,} hold no valid tar header"
    return TarSample(key, start, end, reason=Reason.DAMAGED_TAR, detail=detail)


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


def stat_shard(path: Path) -> ShardRef:
    """Returns what identifies a shard before it is read.

    Raises:
        ShardError: It is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(
            f"{path}: {error.strerror}. Bring it back and run again, nothing is lost"
        ) from error
    return ShardRef(path, status.st_size, status.st_mtime_ns)
