"""Reading samples by index, as `open_clean` does, beside webdataset's reader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.tars import write_shards
from bench.timing import in_bare_process, interleaved

_ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
_SIZES = {"jpg": 1000, "cls": 1}


def measure(*, quick: bool) -> dict[str, Any]:
    """Reads all samples, and every second one, of shards in the page cache."""
    n_samples, repeats = (20_000, 3) if quick else (500_000, 3)
    with tempfile.TemporaryDirectory(prefix="shardsieve-bench-") as name:
        write_shards(Path(name), n_samples, 20, _SIZES)
        result = in_bare_process(speed_of, name, repeats, environment=_ONE_THREAD)
    return {"repeats": repeats, "samples": n_samples, "members": 2 * n_samples, **result}


def describe(result: dict[str, Any]) -> str:
    """Says how fast samples come."""
    rate = result["samples_per_s"]
    return "\n".join(
        [
            f"{result['samples']:,} samples of jpg (1,000 bytes) and cls, one core:",
            *(f"{name:24} {value:9,} samples a CPU second" for name, value in rate.items()),
            f"{result['ratio']:.1f} times as many as webdataset (goal: 10; 100,000 a second)",
        ]
    )


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    rate = result["samples_per_s"]["open_clean, in order"]
    return {
        f"100,000 samples/s a core ({rate:,})": rate >= 100_000,
        f"10 times webdataset ({result['ratio']})": result["ratio"] >= 10,
    }


def speed_of(folder: str, repeats: int) -> dict[str, Any]:
    """Times the readers, after a check that they give the same samples."""
    import webdataset

    from shardsieve.config import IndexConfig
    from shardsieve.data.index import SampleIndex
    from shardsieve.data.subset import FILE, Subset, write_subset
    from shardsieve.progress import Silent
    from shardsieve.shards.clean import CleanSamples
    from shardsieve.stages.index import index

    paths = sorted(Path(folder).glob("*.tar"))
    index(paths, IndexConfig(), out=Path(folder), progress=Silent())
    samples = SampleIndex.open(Path(folder))
    n_samples = len(samples)
    subsets = {}
    for name, rows in (("all", np.arange(n_samples)), ("half", np.arange(0, n_samples, 2))):
        write_subset(Path(folder) / f"{name}-{FILE}", samples, rows)
        subsets[name] = Subset.open(Path(folder) / f"{name}-{FILE}")

    def with_webdataset(urls: list[Path]) -> Any:
        names = [str(url) for url in urls]
        return webdataset.WebDataset(names, shardshuffle=False, empty_check=False)

    few = paths[:1]
    n_few = n_samples // len(paths)
    for name, step in (("all", 1), ("half", 2)):
        theirs = [_plain(sample) for sample in with_webdataset(few)][::step]
        ours = [_plain(s) for s, _ in zip(CleanSamples(subsets[name]), theirs, strict=False)]
        assert ours == theirs, "other samples than webdataset gives"

    readers = {
        "open_clean, in order": (n_samples, lambda: _count(CleanSamples(subsets["all"]))),
        "open_clean, shuffled": (n_samples, lambda: _count(CleanSamples(subsets["all"], seed=0))),
        "open_clean, every second": (
            -(-n_samples // 2),
            lambda: _count(CleanSamples(subsets["half"])),
        ),
        "webdataset": (n_few, lambda: _count(with_webdataset(few))),
    }

    costs = interleaved({name: call for name, (_, call) in readers.items()}, repeats)
    rate = {name: round(n / costs[name]["cpu_s"][1]) for name, (n, _) in readers.items()}
    ratio = rate["open_clean, in order"] / rate["webdataset"]
    return {"costs": costs, "samples_per_s": rate, "ratio": round(ratio, 2)}


def _plain(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != "__local_path__"}


def _count(samples: Any) -> int:
    return sum(1 for _ in samples)
