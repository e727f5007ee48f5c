"""Tars of the tests of tar_scan: made by `tarfile`, and broken in ways that a checksum allows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@dataclass(frozen=True)
class TarCase:
    """What the tar of one test holds."""

    name: str
    layout: str
    n_samples: int
    folder: str = ""
    """Prefix of the names; a long one needs extension headers."""
    extensions: tuple[str, ...] = ("jpg", "cls")


TAR_CASES = (
    TarCase("empty", "ustar", 0),
    TarCase("one-sample", "ustar", 1),
    TarCase("plain", "ustar", 300),
    TarCase("prefixed", "ustar", 50, "folder/" * 15),
    TarCase("long-gnu", "gnu", 50, "long/" * 40, ("jpg", "Seg.PNG", "json")),
    TarCase("long-pax", "pax", 50, "größe/" * 40, ("jpg", "cls", "JSON")),
    TarCase("no-samples", "gnu", 20, "__meta__/"),
)


def tar_inputs(case: TarCase, seed: int = 0) -> bytes:
    """Make the tar of a case.

    Args:
        case: one of TAR_CASES.
        seed: the same seed gives the same bytes.

    Returns:
        A whole tar; contents have 0 to 2,000 bytes.
    """
    rng = np.random.default_rng([seed, case.n_samples])
    files = [
        (f"{case.folder}{i:06d}.{extension}", rng.bytes(int(rng.integers(0, 2000))))
        for i in range(case.n_samples)
        for extension in case.extensions
    ]
    return make_tar(files, case.layout)


def make_tar(files: Sequence[tuple[str | tarfile.TarInfo, bytes]], layout: str = "ustar") -> bytes:
    """Write files with `tarfile`.

    Args:
        files: a name, or a ready TarInfo, and the content of each.
        layout: key of FORMATS.

    Raises:
        ValueError: the format has no room for a name.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[layout]) as tar:
        for entry, content in files:
            info = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            info.size = len(content) if isinstance(entry, str) else info.size
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sealed(header: bytes, *, signed: bool = False) -> bytes:
    """Give a 512-byte header the checksum of its bytes, or of its bytes as signed numbers."""
    raw = bytearray(header)
    raw[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in raw)
    raw[148:156] = b"%06o\0 " % total
    return bytes(raw)


def make_hostile(rng: np.random.Generator, n_blocks: int) -> bytes:
    """Make blocks with valid checksums and senseless fields, among noise, text and zeros."""
    blocks = []
    for _ in range(n_blocks):
        raw = bytearray(tarfile.TarInfo(f"{rng.integers(99)}.jpg").tobuf(tarfile.USTAR_FORMAT))
        raw[156] = rng.choice(np.frombuffer(b"0\x007123456gLKxXS\xff", np.uint8))
        raw[124:136] = _size_fields(rng)[rng.integers(5)]
        if rng.random() < 0.3:
            raw[257 + rng.integers(6)] ^= 1
        if rng.random() < 0.3:
            raw[345:500] = rng.bytes(155)
        if rng.random() < 0.2:
            raw[:100] = rng.bytes(100)
        kind = rng.integers(8)
        if kind == 0:
            blocks.append(bytes(512))
        elif kind == 1:
            blocks.append(rng.bytes(512))
        elif kind == 2:
            length = rng.integers(30)
            records = b"%d path=a/b.jpg\n%d size=%d\n" % (length, 11, rng.integers(2000))
            blocks.append((records * 30)[rng.integers(9) :][:512].ljust(512, b" "))
        elif kind == 3:
            blocks.append(bytes(raw))
        else:
            blocks.append(sealed(bytes(raw), signed=kind == 4))
    whole = b"".join(blocks)
    return whole[: len(whole) - rng.integers(600) * (rng.random() < 0.5)]


def _size_fields(rng: np.random.Generator) -> list[bytes]:
    fields = (
        b"%011o\0" % int(rng.integers(3000)),
        b"\x80" + int(rng.integers(3000)).to_bytes(11, "big"),
        bytes(rng.choice(np.frombuffer(b"01234567 8-\0", np.uint8), 12)),
        b"\xff" * int(rng.integers(13)),
        b"\x80" + rng.bytes(11),
    )
    return [field.ljust(12, b"\0") for field in fields]
