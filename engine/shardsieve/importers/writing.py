"""One shard: written, read back and compared, then named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from shardsieve.data.table import replace_file, write_ipc
from shardsieve.errors import ShardError
from shardsieve.importers.plan import PLACE, PROBLEMS, Plan, Refused
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE


def write_shard(plan: Plan, rows: pa.Table, keys: list[str], shard: Path) -> pa.Table:
    """Writes the samples of some rows; what has no image becomes a problem.

    Members are `KEY.jpg` (or what the bytes are), `KEY.cls` with the label as a number, and
    `KEY.json` with the source and every other column of the plan. The same input gives the same
    bytes: times, owners and modes are fixed.

    Args:
        plan: Whose reader is used.
        rows: Rows of the plan.
        keys: Their keys.
        shard: The tar; it appears when it has been read back and is right.

    Returns:
        A row per row: `key`, the plan's columns, `extension`, `size`, `sha256` of the image, and
        `reason` and `detail` where there is none.

    Raises:
        ShardError: What was read back is not what was written.
        OSError: The disk is full, or the folder cannot be written to.
    """
    temporary = shard.with_name(shard.name + ".part")
    done: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with temporary.open("wb") as tar:
        for key, row, image in zip(keys, rows.to_pylist(), plan.reader.images(rows), strict=True):
            if isinstance(image, Refused):
                done.append({"reason": image.reason.value, "detail": image.detail})
                continue
            sample = b"".join(
                (
                    *_member(f"{key}.{image.extension}", image.data),
                    *_member(f"{key}.cls", b"%d" % row["label"]),
                    *_member(f"{key}.json", _metadata(row)),
                )
            )
            digest.update(sample)
            tar.write(sample)
            done.append(
                {
                    "extension": image.extension,
                    "size": len(image.data),
                    "sha256": hashlib.sha256(image.data).digest(),
                }
            )
        digest.update(END_OF_ARCHIVE)
        tar.write(END_OF_ARCHIVE)
    _compare(temporary, digest.digest())
    replace_file(temporary, shard)
    return _part_table(rows, keys, done)


def write_part(path: Path, table: pa.Table, *, fingerprint: str, shard: Path) -> None:
    """Records a finished shard."""
    facts = {"fingerprint": fingerprint, "size_bytes": str(shard.stat().st_size)}
    write_ipc(path, table.replace_schema_metadata(facts))


def _metadata(row: dict[str, Any]) -> bytes:
    more = {name: value for name, value in row.items() if name not in PLACE and value is not None}
    text = json.dumps({"source": row["source"], **more}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns header, content and padding; tarfile takes ten times as long for the same bytes."""
    header = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            # Mode, owner, group, size, time.
            b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(data) + b"00000000000\0",
            # The checksum counts as spaces; a regular file, no link, POSIX, no names, no devices.
            b" " * 8 + b"0" + bytes(100) + b"ustar\x0000" + bytes(247),
        )
    )
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header, data, bytes(-len(data) % BLOCK)


def _part_table(rows: pa.Table, keys: list[str], done: list[dict[str, Any]]) -> pa.Table:
    types = {
        "extension": pa.string(),
        "size": pa.int64(),
        "sha256": pa.binary(32),
        "reason": PROBLEMS.field("reason").type,
        "detail": PROBLEMS.field("detail").type,
    }
    table = pa.table({"key": pa.array(keys, pa.string())})
    for name in rows.column_names:
        if name not in ("file", "position"):
            table = table.append_column(name, rows.column(name))
    for name, kind in types.items():
        table = table.append_column(name, pa.array([row.get(name) for row in done], kind))
    return table


def _compare(path: Path, written: bytes) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if found != written:
        raise ShardError(
            f"{path}: what was read back is not what was written. "
            "The disk or its file system is at fault; the shard was not given its name"
        )
