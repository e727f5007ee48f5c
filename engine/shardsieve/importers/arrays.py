"""Images that are arrays of pixels in larger files: they become PNG, which loses nothing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from shardsieve.errors import DataError
from shardsieve.importers.plan import Picture, Problem, Refused

Pixels = npt.NDArray[np.uint8]
# A file to (n, 3, H, W) u8.
Load = Callable[[Path], Pixels]


class ArrayReader:
    """Reads rows by `file` and `position` from files of colour planes."""

    def __init__(self, files: Sequence[Path], load: Load) -> None:
        self._files = list(files)
        self._load = load

    def fingerprint(self, rows: pa.Table) -> str:
        """Hashes size and time of change of the files."""
        return stat_files(self._files, rows)

    def images(self, rows: pa.Table) -> Iterator[Picture | Refused]:
        """Yields PNGs that were decoded again and found the same."""
        loaded: tuple[int, Pixels] | None = None
        columns = (rows.column(name).to_pylist() for name in ("file", "position"))
        for file, position in zip(*columns, strict=True):
            if loaded is None or loaded[0] != file:
                loaded = (file, self._load(self._files[file]))
            yield encode_png(loaded[1][position].transpose(1, 2, 0))


def encode_png(pixels_HWC: Pixels) -> Picture | Refused:
    """Encodes (H, W, 3) u8 without loss, and makes sure of it."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(out, "PNG")
    data = out.getvalue()
    with Image.open(io.BytesIO(data)) as again:
        if not np.array_equal(np.asarray(again), pixels_HWC):
            return Refused(Problem.UNREADABLE, "its PNG does not decode to the same pixels")
    return Picture(data, "png")


def stat_files(files: Sequence[Path], rows: pa.Table) -> str:
    """Hashes size and time of change of the files that rows lie in.

    Raises:
        DataError: One is gone.
    """
    digest = hashlib.sha256()
    for file in np.unique(rows.column("file").to_numpy()).tolist():
        try:
            status = files[file].stat()
        except OSError as error:
            raise DataError(f"{files[file]}: {error.strerror}. Bring it back, run again") from error
        digest.update(b"%d %d %d\n" % (file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def array_rows(files: Sequence[Path], counts: Sequence[int]) -> pa.Table:
    """Makes `source` (`FILE#POSITION`), `file` and `position` for consecutive records."""
    file_N = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    position_N = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    names = pa.array([file.name for file in files]).take(pa.array(file_N))
    sources = pa.compute.binary_join_element_wise(
        names, pa.array(position_N).cast(pa.string()), "#"
    )
    return pa.table({"source": sources, "file": file_N, "position": position_N})


def read_records(
    file: Path, header: int, side: int, what: str
) -> tuple[npt.NDArray[np.uint8], Pixels]:
    """Maps a file of records: `header` bytes, then three planes of side x side.

    Returns:
        (n, header) u8 and (n, 3, side, side) u8.

    Raises:
        DataError: It cannot be read, or is not a whole number of records long.
    """
    size = header + 3 * side * side
    try:
        length = file.stat().st_size
        if length == 0 or length % size:
            raise DataError(
                f"{file}: {length:,} bytes are no whole number of {what} records of {size:,} bytes"
            )
        records = np.memmap(file, np.uint8, "r").reshape(-1, size)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return records[:, :header], records[:, header:].reshape(-1, 3, side, side)
