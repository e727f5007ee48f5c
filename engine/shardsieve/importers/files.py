"""Images that are files of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from shardsieve.importers.plan import Picture, Problem, Refused

# First bytes of the formats that Pillow opens and people keep photos in.
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
)


def identify(data: bytes) -> str | None:
    """Returns the extension that the first bytes of an image call for, None for other bytes."""
    for magic, extension in _MAGIC:
        if data.startswith(magic):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "avif"
    return None


def picture(data: bytes) -> Picture | Refused:
    """Wraps the bytes of an image, or says why they are none."""
    extension = identify(data)
    if extension is not None:
        return Picture(data, extension)
    if not data:
        return Refused(Problem.UNREADABLE, "empty: 0 bytes")
    begin = data[:16]
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return Refused(Problem.NOT_AN_IMAGE, "a web page, saved in place of the image")
    return Refused(Problem.NOT_AN_IMAGE, f"{len(data):,} bytes that begin like no image: {begin!r}")


class FileReader:
    """Reads each row's `source`, a path below a folder."""

    def __init__(self, base: Path) -> None:
        self._base = str(base)

    def fingerprint(self, rows: pa.Table) -> str:
        """Hashes size and time of change of the files."""
        digest = hashlib.sha256()
        for source in rows.column("source").to_pylist():
            try:
                status = os.stat(os.path.join(self._base, source))  # noqa: PTH116, PTH118
                digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
            except OSError:
                digest.update(b"-\n")
        return digest.hexdigest()

    def images(self, rows: pa.Table) -> Iterator[Picture | Refused]:
        """Yields the files' bytes."""
        for source in rows.column("source").to_pylist():
            yield self.read(source)

    def read(self, source: str) -> Picture | Refused:
        """Reads one file below the folder, or at an absolute path."""
        # Not pathlib: it costs more than opening a small file that is cached.
        path = os.path.join(self._base, source)  # noqa: PTH118
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                return picture(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return Refused(Problem.MISSING, f"no such file: {path}")
        except (OSError, ValueError) as error:
            return Refused(Problem.UNREADABLE, f"{path}: {error}")
