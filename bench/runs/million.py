"""The line after embedding at a million samples: seconds and peak memory of every stage.

Features (384-d, f16) and labels are made up: 100 classes, a fifth of the labels wrong. Everything
else is the engine's own: shards of small tars whose headers are read again by `verify`, feature
files with checksums, an index, and each stage by `run_stages` in a fresh process. Its peak memory
is what the system counts as resident, mapped files and imports included.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.timing import in_new_process
from shardsieve.config import Config, load_config
from shardsieve.data.features import write_shard
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.record import StageRecord, StageResult, content_key
from shardsieve.data.table import write_ipc
from shardsieve.identity import BY_NAME, Identities, absolute_paths
from shardsieve.pipeline import plan_write, run_stages
from shardsieve.rundir import RunDir
from shardsieve.shards.samples import stat_shard
from shardsieve.shards.tar import BLOCK, END_OF_ARCHIVE
from shardsieve.verify import verify

DIM, CLASSES, WRONG = 384, 100, 0.2
STAGES = ("probe", "select", "write --dry-run", "verify")
_PER_SHARD = 10_000
_SAMPLE_BYTES = 2 * BLOCK
MOST_BYTES = 3e9


def measure(*, quick: bool) -> dict[str, Any]:
    """Runs the stages once at each of two sizes, ten times apart."""
    sizes = (2_000, 20_000) if quick else (100_000, 1_000_000)
    return {"repeats": 1, "sizes": [_measure_one(size) for size in sizes]}


def describe(result: dict[str, Any]) -> str:
    """Says what each stage cost, and how that grows."""
    small, large = result["sizes"]
    ratio = large["samples"] / small["samples"]
    rows = [
        f"{'stage':<16} {small['samples']:>12,} {large['samples']:>18,} samples   growth for "
        f"{ratio:g} times the samples"
    ]
    for name in STAGES:
        before, after = small["stages"][name], large["stages"][name]
        rows.append(
            f"{name:<16} {before['wall_s']:>8.1f} s ({before['cpu_s']:.1f} CPU) "
            f"{after['wall_s']:>8.1f} s ({after['cpu_s']:.1f} CPU)   "
            f"{after['cpu_s'] / before['cpu_s']:.1f} x CPU   "
            f"{before['peak_bytes'] / 1e9:.2f} -> {after['peak_bytes'] / 1e9:.2f} GB"
        )
    most = max(stage["peak_bytes"] for stage in large["stages"].values())
    met = "met" if most < MOST_BYTES else "MISSED"
    rows.append(f"peak memory {most / 1e9:.2f} GB (under {MOST_BYTES / 1e9:g} GB: {met})")
    counts = large["counts"]
    rows.append(f"kept {counts['kept']:,} of {counts['samples']:,}, {large['right']:.1%} right")
    return "\n".join(rows)


def _measure_one(n_samples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="shardsieve-million-") as name:
        folder = Path(name)
        in_new_process(make_run, folder, n_samples)
        stages, results = {}, {}
        for stage in STAGES:
            results[stage], cost, peak = in_new_process(run_stage, folder, stage)
            stages[stage] = {
                "wall_s": round(cost.wall_s, 2),
                "cpu_s": round(cost.cpu_s, 2),
                "peak_bytes": peak,
            }
    problems = results["verify"]["problems"]
    assert problems == [], problems
    planned, counts = results["write --dry-run"], results["select"]
    assert planned["clean"]["samples"] == counts["kept"]
    assert results["verify"]["checked"]["samples"] == n_samples
    return {
        "samples": n_samples,
        "dim": DIM,
        "classes": CLASSES,
        "stages": stages,
        "counts": counts,
        "right": results["select"]["right"],
    }


def settings() -> Config:
    """One epoch on the CPU."""
    return load_config(values={"probe.epochs": 1, "device": "cpu"})


def run_stage(folder: Path, stage: str) -> dict[str, Any]:
    """Runs one stage over what lies in `folder`; returns what is checked afterwards."""
    run = folder / "RUN"
    if stage == "write --dry-run":
        return plan_write(run, settings())
    if stage == "verify":
        findings = verify(run)
        return {"checked": findings.checked, "problems": findings.problems}
    counts = run_stages([stage], run, settings()).manifest.stages[stage].counts
    if stage != "select":
        return dict(counts)
    import pyarrow.parquet as pq

    kept_N = pq.read_table(run / "select" / "scores.parquet", columns=["kept"]).column(0).to_numpy()
    return {**counts, "right": float(np.mean(kept_N == np.load(folder / "right.npy")))}


def make_run(
    folder: Path, n_samples: int, *, dim: int = DIM, classes: int = CLASSES, spread: float = 4
) -> None:
    """Makes shards, and a run directory in which they are indexed and embedded.

    Args:
        folder: Where shards, `RUN` and `right.npy` go.
        n_samples: How many.
        dim: Of the features.
        classes: K, equally frequent; a fifth of the labels are wrong.
        spread: Standard deviation of a class about its centre; that of the centres is 1.
    """
    rng = np.random.default_rng(0)
    true_N = rng.integers(0, classes, n_samples, dtype=np.int32)
    wrong_N = rng.random(n_samples) < WRONG
    other_N = rng.integers(1, classes, n_samples, dtype=np.int32)
    label_N = np.where(wrong_N, (true_N + other_N) % classes, true_N).astype(np.int32)
    np.save(folder / "right.npy", ~wrong_N)
    config = absolute_paths(settings(), tuned=False)
    paths = []
    for start in range(0, n_samples, _PER_SHARD):
        paths.append(folder / f"{start // _PER_SHARD:05d}.tar")
        write_tar(paths[-1], np.arange(start, min(start + _PER_SHARD, n_samples)))
    directory = RunDir(folder / "RUN")
    identities = Identities(config, paths, _key_of(directory))
    index_part = directory.begin("index", identities.of(BY_NAME["index"]))
    _write_index(index_part, paths, label_N, classes)
    _commit(directory, identities, "index", {"samples": n_samples})
    embed_part = directory.begin("embed", identities.of(BY_NAME["embed"]))
    centres_KD = rng.standard_normal((classes, dim), np.float32)
    _write_features(embed_part, true_N, centres_KD, spread, rng)
    _commit(directory, identities, "embed", {"samples": n_samples, "embedded": n_samples})
    import tomli_w

    saved = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    (folder / "RUN" / "config.toml").write_text(saved)


def write_tar(path: Path, numbers: npt.NDArray[np.int64]) -> None:
    """Writes a tar with one member of one block for each number."""
    blocks = np.zeros((len(numbers), _SAMPLE_BYTES), np.uint8)
    for place in range(9):
        blocks[:, place] = ord("0") + numbers // 10 ** (8 - place) % 10
    blocks[:, 9:13] = np.frombuffer(b".jpg", np.uint8)
    blocks[:, 100:108] = np.frombuffer(b"0000644\0", np.uint8)
    blocks[:, 124:136] = np.frombuffer(b"00000001000\0", np.uint8)
    blocks[:, 136:148] = np.frombuffer(b"00000000000\0", np.uint8)
    blocks[:, 156] = ord("0")
    blocks[:, 257:265] = np.frombuffer(b"ustar\x0000", np.uint8)
    checksum = blocks[:, :BLOCK].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    for place in range(6):
        blocks[:, 148 + place] = ord("0") + (checksum >> (3 * (5 - place))) % 8
    blocks[:, 155] = ord(" ")
    blocks[:, BLOCK:] = np.random.default_rng(int(numbers[0])).integers(0, 256, BLOCK, np.uint8)
    path.write_bytes(blocks.tobytes() + END_OF_ARCHIVE)


def _write_index(
    folder: Path, paths: list[Path], label_N: npt.NDArray[np.int32], classes: int
) -> None:
    n_samples = len(label_N)
    inside_N = np.arange(n_samples) % _PER_SHARD
    columns = {
        "key": pa.array([f"{number:09d}" for number in range(n_samples)]),
        "shard": (np.arange(n_samples) // _PER_SHARD).astype(np.int32),
        "offset": inside_N * _SAMPLE_BYTES,
        "size": np.full(n_samples, _SAMPLE_BYTES),
        "image_offset": inside_N * _SAMPLE_BYTES + BLOCK,
        "image_size": np.full(n_samples, BLOCK),
        "label": label_N,
        "reason": np.zeros(n_samples, np.uint8),
        "detail": pa.nulls(n_samples, pa.string()),
    }
    write_ipc(folder / "samples.arrow", pa.table(columns, schema=SCHEMA))
    refs = []
    for number, path in enumerate(paths):
        status = stat_shard(path)
        here = min(_PER_SHARD, n_samples - number * _PER_SHARD)
        refs.append(ShardRef(path, status.size_bytes, status.mtime_ns, here))
    names = tuple(str(label) for label in range(classes))
    SampleIndex.write_shards(folder, tuple(refs), names)


def _write_features(
    folder: Path,
    true_N: npt.NDArray[np.int32],
    centres_KD: npt.NDArray[np.float32],
    spread: float,
    rng: np.random.Generator,
) -> None:
    """Writes a blob for each class; the noise is drawn from a pool, which is quicker."""
    pool = rng.standard_normal((2 * _PER_SHARD, centres_KD.shape[1]), np.float32) * spread
    for shard, start in enumerate(range(0, len(true_N), _PER_SHARD)):
        labels = true_N[start : start + _PER_SHARD]
        first = int(rng.integers(_PER_SHARD))
        features = centres_KD[labels] + pool[first : first + len(labels)]
        reasons = np.zeros(len(labels), np.uint8)
        half = features.astype(np.float16)
        write_shard(folder, shard, half, reasons, [None] * len(labels))


def _key_of(directory: RunDir) -> Any:
    def key(stage: str) -> str | None:
        record = directory.record(stage)
        return record.key if record is not None else None

    return key


def _commit(directory: RunDir, identities: Identities, stage: str, counts: dict[str, int]) -> None:
    identity = identities.of(BY_NAME[stage])
    facts = {"precision": "fp32"} if stage == "embed" else {}
    result = StageResult(counts=counts, facts=facts, notes=["made up by the benchmark"])
    directory.commit(
        StageRecord(
            stage=stage,
            key=content_key(identity),
            identity=identity,
            seconds=0.0,
            device="cpu",
            backend="cpu",
            **result.model_dump(),
        )
    )
