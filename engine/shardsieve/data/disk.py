"""What the operating system says when nothing can be written, turned into what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardsieve.errors import DiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def refuses_writing(error: OSError) -> bool:
    """Whether an error means that the place is full, read-only or not ours."""
    return error.errno in (*_FULL, *_REFUSED)


def disk_error(path: Path, error: OSError) -> DiskError:
    """Says why a file cannot be written and what to do about it.

    Args:
        path: The file, or the folder it was to lie in.
        error: One that `refuses_writing`.
    """
    why = error.strerror or os.strerror(error.errno or 0)
    if error.errno in _FULL:
        free = f" ({_free_bytes(path) / 1e6:,.0f} MB are free)"
        advice = "Make room and give the same command again: it goes on from what is finished"
    else:
        free = ""
        advice = "Make it writable, or choose another folder"
    return DiskError(f"{path}: cannot be written: {why}{free}. {advice}")


@contextmanager
def writing_to(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Turns an error of writing into `folder` into a message that says what to do.

    Args:
        folder: Where is written.
        file: What is written, for errors that name no file.

    Raises:
        DiskError: The disk is full or read-only, or the folder is not ours to write to.
    """
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else file or folder
        inside = named.absolute().is_relative_to(folder.absolute())
        # A file elsewhere that may not be opened is an input.
        if not refuses_writing(error) or (error.errno not in _FULL and not inside):
            raise
        raise disk_error(named, error) from error


def _free_bytes(path: Path) -> int:
    there = next((place for place in (path, *path.parents) if place.exists()), Path("/"))
    return shutil.disk_usage(there).free


def sync_folder(folder: Path) -> None:
    """Makes sure that names that were given in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
