"""write beside cp and beside webdataset's ShardWriter, on the same shards in the page cache.

Half of the samples are kept, chosen at random. Before anything is timed the outputs are compared
member by member.

- `cp` copies the output shards themselves: as many bytes as shardsieve writes. cp neither hashes
  nor waits for the disk, so it stands beside write without sha256 and without fsync; beside both
  with fsync; and, followed by `sha256sum`, beside write as it is by default.
- ShardWriter gets the same samples as webdataset's reader gives them: raw bytes, and decoded and
  encoded again, into the page cache.
"""

from __future__ import annotations

import gc
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset
from PIL import Image

from bench.timing import interleaved
from shardsieve.config import IndexConfig, WriteConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason
from shardsieve.data.scores import scores_table, write_parquet
from shardsieve.progress import Silent
from shardsieve.stages.index import index
from shardsieve.stages.write import write

PHOTO_BYTES = 58_000


def measure(*, quick: bool) -> dict[str, Any]:
    """Writes about 0.5 GB of the 1 GB that was made."""
    n_shards, per_shard, repeats = (3, 40, 2) if quick else (10, 1_700, 5)
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as folder:
        return _measure(Path(folder), n_shards, per_shard, repeats, 40 if quick else 400)


def _measure(
    folder: Path, n_shards: int, per_shard: int, repeats: int, encoded: int
) -> dict[str, Any]:
    shards = make_shards(folder / "in", n_shards, per_shard)
    samples, scores, kept_N = _selected(shards, folder)
    total = sum(path.stat().st_size for path in shards)

    def ours(name: str, *, sha256: bool) -> Callable[[], None]:
        out = folder / name

        def call() -> None:
            out.mkdir(exist_ok=True)
            config = WriteConfig(sha256=sha256)
            write(samples, scores, config, seed=0, out=out, run=folder, progress=Silent())

        return call

    ours("ours", sha256=True)()
    written = sorted((folder / "ours").glob("clean-*.tar"))
    n_bytes = sum(path.stat().st_size for path in written)
    kept = _kept_keys(samples, kept_N)
    raw = lambda: _with_shard_writer(shards, kept, folder / "raw", per_shard)  # noqa: E731
    raw()
    compared = _compare(shards, written, sorted((folder / "raw").glob("*.tar")), kept)
    warm = {
        "write, no sha256": without_fsync(ours("ours-2", sha256=False)),
        "write": without_fsync(ours("ours", sha256=True)),
        "cp": lambda: _cp(written, folder / "cp", fsync=False),
        "cp and sha256sum": lambda: _cp_and_hash(written, folder / "cp"),
    }
    durable = {
        "write, no sha256": ours("ours-2", sha256=False),
        "cp": lambda: _cp(written, folder / "cp", fsync=True),
    }
    few = shards[: max(1, encoded // per_shard)]
    outputs = [folder / name for name in ("ours", "ours-2", "raw", "encoded", "cp")]

    def ready() -> None:
        """No call removes what an earlier one wrote, or waits until it is on the disk."""
        for path in outputs:
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    # What cp copies stays as it was first written.
    (folder / "ours").rename(folder / "written")
    written = [folder / "written" / path.name for path in written]
    result = {
        "repeats": repeats,
        "input_bytes": total,
        "output_bytes": n_bytes,
        "samples_in": len(samples),
        "samples_out": len(kept),
        "members_compared": compared,
        "warm": interleaved(warm, repeats, before=ready),
        "durable": interleaved(durable, repeats, before=ready),
        "shard_writer": interleaved(
            {
                "write, no sha256": without_fsync(ours("ours-2", sha256=False)),
                "write": without_fsync(ours("ours", sha256=True)),
                "raw": raw,
            },
            repeats,
            warmups=0,
            before=ready,
        ),
        "encoded_samples": _count_kept(few, kept, encoded),
        "encode": interleaved(
            {
                "write, no sha256": without_fsync(ours("ours-2", sha256=False)),
                "encode": lambda: _encode_again(few, kept, folder / "encoded", encoded),
            },
            repeats,
            warmups=0,
            before=ready,
        ),
    }
    return result | _ratios(result)


def describe(result: dict[str, Any]) -> str:
    """Says how fast write is beside the others."""
    rows = [
        f"{result['samples_out']:,} of {result['samples_in']:,} samples kept, "
        f"{result['output_bytes'] / 1e6:,.0f} MB written; {result['members_compared']:,} members "
        "compared, byte for byte",
        "into the page cache (median):",
    ]
    for name, spent in result["warm"].items():
        rate = result["output_bytes"] / spent["wall_s"][1] / 1e9
        rows.append(f"  {name:<18} {rate:6.2f} GB/s  {spent['cpu_s'][1]:.3f} CPU s")
    rows.append("onto the disk, with fsync (median):")
    for name, spent in result["durable"].items():
        rate = result["output_bytes"] / spent["wall_s"][1] / 1e9
        rows.append(f"  {name:<18} {rate:6.2f} GB/s  {spent['cpu_s'][1]:.3f} CPU s")
    rows += [f"{name}: {value:.2f}" for name, value in result["ratios"].items()]
    return "\n".join(rows)


def _ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Wall seconds against cp, whose work is the kernel's; CPU seconds against the rest."""

    def spent(part: str, name: str, what: str) -> float:
        median: float = result[part][name][what][1]
        return median

    ours, hashed = "write, no sha256", "write"
    warm, durable, writer = "warm", "durable", "shard_writer"
    ratios = {
        "of cp's bytes/s, page cache": ("cp", warm, ours, "wall_s"),
        "of cp's bytes per CPU second": ("cp", warm, ours, "cpu_s"),
        "of cp's bytes/s, on disk": ("cp", durable, ours, "wall_s"),
        "of cp and sha256sum's bytes/s": ("cp and sha256sum", warm, hashed, "wall_s"),
        "of cp and sha256sum's bytes per CPU second": ("cp and sha256sum", warm, hashed, "cpu_s"),
        "times ShardWriter, raw, CPU": ("raw", writer, ours, "cpu_s"),
        "times ShardWriter, raw, CPU, hashed": ("raw", writer, hashed, "cpu_s"),
        "times ShardWriter, raw, wall": ("raw", writer, ours, "wall_s"),
    }
    found = {
        name: round(spent(part, other, what) / spent(part, us, what), 2)
        for name, (other, part, us, what) in ratios.items()
    }
    for name, what in (("CPU", "cpu_s"), ("wall", "wall_s")):
        theirs = spent("encode", "encode", what) / max(result["encoded_samples"], 1)
        each = spent("encode", ours, what) / result["samples_out"]
        found[f"times decode and encode, {name}"] = round(theirs / each, 1)
    return {"ratios": found}


def make_shards(folder: Path, n_shards: int, per_shard: int) -> list[Path]:
    """Makes shards of photo-sized JPEGs: jpg, cls and json, in the way of img2dataset."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    photos = [_photo(rng) for _ in range(40)]
    paths = []
    for shard in range(n_shards):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(per_shard):
                key = f"{shard:05d}{number:04d}"
                photo = photos[int(rng.integers(len(photos)))]
                label = str(int(rng.integers(14))).encode()
                about = b'{"caption": "a photo", "key": "%s"}' % key.encode()
                for kind, data in (("jpg", photo), ("cls", label), ("json", about)):
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        paths.append(path)
    return paths


def _photo(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 255, (40, 50, 3), np.uint8)
    image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 9, (375, 500, 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=82)
    return out.getvalue()


def _selected(
    shards: list[Path], folder: Path
) -> tuple[SampleIndex, Path, np.ndarray[Any, np.dtype[np.bool_]]]:
    """An index, and scores that keep half of the samples."""
    (folder / "index").mkdir()
    index(shards, IndexConfig(), out=folder / "index", progress=Silent())
    samples = SampleIndex.open(folder / "index")
    kept_N = np.random.default_rng(1).random(len(samples)) < 0.5
    reason_N = np.where(kept_N, Reason.KEPT, Reason.HIGH_LOSS).astype(np.uint8)
    losses = LossTable.empty(len(samples))
    details = pa.chunked_array([pa.nulls(len(samples), pa.string())])
    table = scores_table(samples, losses, kept_N.astype(np.float64), reason_N, details)
    write_parquet(folder / "scores.parquet", table)
    return samples, folder / "scores.parquet", kept_N


def _kept_keys(samples: SampleIndex, kept_N: np.ndarray[Any, np.dtype[np.bool_]]) -> set[str]:
    return set(samples.keys_N.filter(pa.array(kept_N)).to_pylist())


@contextmanager
def _no_fsync() -> Iterator[None]:
    genuine = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = genuine


def without_fsync(call: Callable[[], None]) -> Callable[[], None]:
    """Makes a call leave its bytes in the page cache, as cp does."""

    def cached() -> None:
        with _no_fsync():
            call()

    return cached


def _cp(files: list[Path], folder: Path, *, fsync: bool) -> None:
    folder.mkdir(exist_ok=True)
    # Not a reflink, which would copy nothing.
    subprocess.run(["cp", "--reflink=never", *map(str, files), str(folder)], check=True)
    if fsync:
        subprocess.run(["sync", *map(str, folder.iterdir())], check=True)


def _cp_and_hash(files: list[Path], folder: Path) -> None:
    _cp(files, folder, fsync=False)
    written = [str(path) for path in folder.iterdir()]
    subprocess.run(["sha256sum", *written], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _webdataset_left_open() -> Iterator[None]:
    """Webdataset leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def _read(shards: list[Path], kept: set[str]) -> Iterator[dict[str, Any]]:
    for sample in webdataset.WebDataset([str(path) for path in shards], shardshuffle=False):
        if sample["__key__"] in kept:
            yield sample


def _with_shard_writer(shards: list[Path], kept: set[str], folder: Path, per_shard: int) -> None:
    folder.mkdir(exist_ok=True)
    pattern = str(folder / "raw-%06d.tar")
    with (
        _webdataset_left_open(),
        webdataset.ShardWriter(pattern, maxcount=per_shard // 2, verbose=0) as sink,
    ):
        for sample in _read(shards, kept):
            sink.write(sample)


def _encode_again(shards: list[Path], kept: set[str], folder: Path, most: int) -> None:
    folder.mkdir(exist_ok=True)
    pattern = str(folder / "encoded-%06d.tar")
    with (
        _webdataset_left_open(),
        webdataset.ShardWriter(pattern, maxcount=most, verbose=0) as sink,
    ):
        for number, sample in enumerate(_read(shards, kept)):
            if number == most:
                break
            sink.write(sample | {"jpg": Image.open(io.BytesIO(sample["jpg"]))})


def _count_kept(shards: list[Path], kept: set[str], most: int) -> int:
    with _webdataset_left_open():
        return min(most, sum(1 for _ in _read(shards, kept)))


def _members(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with tarfile.open(path) as tar:
            for info in tar:
                content = tar.extractfile(info)
                assert content is not None
                yield info.name, content.read()


def _compare(shards: list[Path], ours: list[Path], theirs: list[Path], kept: set[str]) -> int:
    """Requires both outputs to hold exactly the kept members of the input, byte for byte.

    Raises:
        AssertionError: One does not.
    """
    count = 0
    # ShardWriter sorts the members of a sample by name; nothing else may differ.
    wanted = (row for row in _members(shards) if row[0].partition(".")[0] in kept)
    for want, got in zip(wanted, _members(ours), strict=True):
        assert want == got, f"{want[0]} became {got[0]}, or its bytes changed"
        count += 1
    raw = dict(_members(theirs))
    assert len(raw) == count
    for name, content in _members(ours):
        assert raw[name] == content, name
    return count
