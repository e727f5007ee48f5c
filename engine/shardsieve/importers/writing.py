"""One shard: written, read back and compared, then named."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.data.table import replace_file, write_ipc
from shardsieve.errors import ShardError
from shardsieve.importers.plan import PLACE, PROBLEMS, Plan, Refused


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
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, row, image in zip(keys, rows.to_pylist(), plan.reader.images(rows), strict=True):
            if isinstance(image, Refused):
                done.append({"reason": image.reason.value, "detail": image.detail})
                continue
            _add(tar, f"{key}.{image.extension}", image.data)
            _add(tar, f"{key}.cls", str(row["label"]).encode())
            _add(tar, f"{key}.json", _metadata(row))
            done.append(
                {
                    "extension": image.extension,
                    "size": len(image.data),
                    "sha256": hashlib.sha256(image.data).digest(),
                }
            )
    table = _part_table(rows, keys, done)
    _compare(temporary, table)
    replace_file(temporary, shard)
    return table


def write_part(path: Path, table: pa.Table, *, fingerprint: str, shard: Path) -> None:
    """Records a finished shard."""
    facts = {"fingerprint": fingerprint, "size_bytes": str(shard.stat().st_size)}
    write_ipc(path, table.replace_schema_metadata(facts))


def _metadata(row: dict[str, Any]) -> bytes:
    more = {name: value for name, value in row.items() if name not in PLACE and value is not None}
    text = json.dumps({"source": row["source"], **more}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


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


def _compare(path: Path, table: pa.Table) -> None:
    """Reads a shard back and compares every image and label of it."""
    written = table.filter(pc.is_null(table.column("reason")))
    columns = (written.column(name).to_pylist() for name in ("key", "extension", "sha256", "label"))
    with tarfile.open(path, "r:") as tar:
        for key, extension, digest, label in zip(*columns, strict=True):
            data = _next(tar, f"{key}.{extension}", path)
            text = _next(tar, f"{key}.cls", path)
            _next(tar, f"{key}.json", path)
            if hashlib.sha256(data).digest() != digest or text != b"%d" % label:
                raise _disagrees(path, key)
        if tar.next() is not None:
            raise _disagrees(path, "its end")


def _next(tar: tarfile.TarFile, name: str, path: Path) -> bytes:
    member = tar.next()
    file = tar.extractfile(member) if member is not None and member.name == name else None
    if file is None:
        raise _disagrees(path, name)
    return file.read()


def _disagrees(path: Path, where: str) -> ShardError:
    return ShardError(
        f"{path} at {where}: what was read back is not what was written. "
        "The disk or its file system is at fault; the shard was not given its name"
    )
