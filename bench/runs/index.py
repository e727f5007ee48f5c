"""index beside `tarfile`: members a second of CPU, and memory from one million samples to four."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Any

from bench.tars import write_shards
from bench.timing import in_bare_process, interleaved, peak_memory_bytes
from shardsieve.config import IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.progress import Silent
from shardsieve.stages.index import index

_ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}


def measure(*, quick: bool) -> dict[str, Any]:
    """Indexes a million members, then one and four million samples for the memory."""
    n_members, repeats = (40_000, 3) if quick else (1_000_000, 3)
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        folder = Path(name)
        write_shards(folder, n_members // 2, 20, {"jpg": 1000, "cls": 1})
        speed = in_bare_process(speed_of, str(folder), repeats, environment=_ONE_THREAD)
    n_samples = 20_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        # One member is image and label: a kilobyte a sample, headers as any other.
        folder = Path(name)
        write_shards(folder, 4 * n_samples, 40, {"cls": 1})
        peaks = [
            in_bare_process(peak_bytes, str(folder), n, environment=_ONE_THREAD) for n in (10, 40)
        ]
    (few, few_peak), (many, many_peak) = peaks
    return {
        "repeats": repeats,
        "members": n_members,
        **speed,
        "samples": [few, many],
        "peak_mb": [round(few_peak / 1e6, 1), round(many_peak / 1e6, 1)],
        "bytes_per_sample": round((many_peak - few_peak) / (many - few), 1),
    }


def describe(result: dict[str, Any]) -> str:
    """Says how fast the index is and what it needs."""
    (few, many), (few_mb, many_mb) = result["samples"], result["peak_mb"]
    return (
        f"{result['members']:,} members: {result['members_per_s']['index']:,.0f} a CPU second, "
        f"tarfile {result['members_per_s']['tarfile']:,.0f}: {result['ratio']:.1f} times as many "
        f"(goal: 10)\n"
        f"peak memory: {few_mb:,.0f} MB at {few:,} samples (goal: 400), {many_mb:,.0f} MB at "
        f"{many:,} (goal: 500), {result['bytes_per_sample']:.1f} bytes a sample (goal: 64)"
    )


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    few_mb, many_mb = result["peak_mb"]
    return {
        f"10 times the members/s of tarfile ({result['ratio']:.1f})": result["ratio"] >= 10,
        f"400 MB at 1M samples ({few_mb:.0f})": few_mb < 400,
        f"500 MB at 4M samples ({many_mb:.0f})": many_mb < 500,
        f"64 bytes a sample ({result['bytes_per_sample']})": result["bytes_per_sample"] < 64,
    }


def speed_of(folder: str, repeats: int) -> dict[str, Any]:
    """Times both, after a check."""
    shards = sorted(Path(folder).glob("*.tar"))
    few = shards[:1]
    check(few)
    n_few = sum(_count_with_tarfile(path) for path in few)
    n_all = n_few // len(few) * len(shards)
    costs = interleaved(
        {
            "index": lambda: _index(shards),
            "tarfile": lambda: [_count_with_tarfile(path) for path in few],
        },
        repeats,
    )
    rate = {name: n / costs[name]["cpu_s"][1] for name, n in (("index", n_all), ("tarfile", n_few))}
    return {
        "costs": costs,
        "members_per_s": {name: round(value) for name, value in rate.items()},
        "ratio": round(rate["index"] / rate["tarfile"], 2),
    }


def check(shards: list[Path]) -> None:
    """Requires an index to hold the names, places and bytes that `tarfile` finds.

    Raises:
        AssertionError: It does not.
    """
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        index(shards, IndexConfig(), out=Path(name), progress=Silent())
        found = SampleIndex.open(Path(name))
        keys, label_N = found.keys_N.to_pylist(), found.label_N
        places = [found.numbers(column) for column in ("shard", "image_offset", "image_size")]
        end_N = found.numbers("offset") + found.numbers("size")
        row = 0
        for number, path in enumerate(shards):
            data = path.read_bytes()
            with tarfile.open(path) as tar:
                members = tar.getmembers()
                for image, label in zip(members[::2], members[1::2], strict=True):
                    shard, offset, size = (int(column[row]) for column in places)
                    assert (shard, offset, size) == (number, image.offset_data, image.size)
                    assert f"{keys[row]}.jpg" == image.name and f"{keys[row]}.cls" == label.name
                    assert end_N[row] == label.offset_data + 512
                    assert data[offset : offset + size] == _content(tar, image)
                    assert label_N[row] == int(_content(tar, label))
                    row += 1
        assert row == len(found)


def _index(shards: list[Path]) -> int:
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        result = index(shards, IndexConfig(image=("jpg", "cls")), out=Path(name), progress=Silent())
    return result.counts["samples"]


def peak_bytes(folder: str, n_shards: int) -> tuple[int, int]:
    """Returns how many samples were indexed, and the most memory that this process ever had."""
    n_samples = _index(sorted(Path(folder).glob("*.tar"))[:n_shards])
    return n_samples, peak_memory_bytes()


def _count_with_tarfile(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len(tar.getmembers())


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    return file.read()
