"""import_shards: a plan becomes shards, tables and a record, in parallel and restartable.

```
OUT/
  train-000000.tar ...   the shards
  classes.txt            label i is the name on line i
  samples.parquet        key, shard, source, label, size and sha256 of every image
  problems.csv           source, reason and detail of every entry that is not in the shards
  import.json            what was imported from where, counts, notes; written last
  .parts/                what lets a later call go on: one file per finished shard
```
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shardsieve.data.record import content_key
from shardsieve.data.table import read_ipc, write_json
from shardsieve.errors import ConfigError, DataError
from shardsieve.importers.layouts import LAYOUTS, Options, make_plan
from shardsieve.importers.outcome import Outcome, write_tables
from shardsieve.importers.plan import Plan
from shardsieve.importers.writing import write_part, write_shard
from shardsieve.progress import Advance, Progress, Silent
from shardsieve.rundir import RunDir

# Raised when the same rows would give other shards than before.
VERSION = 1
_MARK = "import.json"
_PARTS = ".parts"
_ROWS_HASHED = 50_000


@dataclass(frozen=True, slots=True)
class _Work:
    """What the threads share."""

    plan: Plan
    order_N: np.ndarray[Any, np.dtype[np.int64]]
    per_shard: int
    prefix: str
    out: Path

    def __len__(self) -> int:
        return -(-len(self.order_N) // self.per_shard)

    def shard(self, number: int) -> Path:
        return self.out / f"{self.prefix}-{number:06d}.tar"

    def part(self, number: int) -> Path:
        return self.out / _PARTS / f"{self.prefix}-{number:06d}.arrow"

    def rows(self, number: int) -> tuple[pa.Table, list[str]]:
        picked = self.order_N[number * self.per_shard : (number + 1) * self.per_shard]
        keys = [f"{self.prefix}-{row:08d}" for row in picked.tolist()]
        return self.plan.rows.take(pa.array(picked)), keys


def import_shards(
    kind: str,
    source: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    per_shard: int = 5000,
    shuffle: int | None = None,
    max_bad_fraction: float = 0.25,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Writes a data set as labelled WebDataset shards.

    Every image's bytes are those of the source; every shard is read back and compared before it
    gets its name. Called again after an interruption, finished shards are kept if their sources
    have not changed since.

    Args:
        kind: A name of `shardsieve.importers.layouts.LAYOUTS`, such as `imagefolder`.
        source: The folder or file.
        out: Folder for the shards; made if missing.
        options: Split, columns, label files.
        per_shard: Entries per shard.
        shuffle: Seed of a random order of the samples; None keeps the order of the source.
        max_bad_fraction: More than this share of problems is an error.
        workers: Threads; default: four more than cores, at most 16.
        progress: Where to report.

    Returns:
        Shards, counts, problems by reason and notes.

    Raises:
        ConfigError: An option that the layout does not take, or a number that makes no sense.
        DataError: The source is not laid out like that, most of it cannot be used, or `out` holds
            something else.
        LabelError: Labels and classes do not fit together.
        ShardError: A shard is not what was written.
    """
    if per_shard < 1 or not 0 <= max_bad_fraction <= 1:
        raise ConfigError("--per-shard must be at least 1, --max-bad-fraction between 0 and 1")
    if shuffle is not None and kind in LAYOUTS and not LAYOUTS[kind].shuffles:
        raise ConfigError(f"--shuffle: {kind} is read in its own order; shuffle when training")
    progress = progress or Silent()
    out = Path(out)
    plan, split = make_plan(kind, Path(source), options or Options())
    if not plan.rows.num_rows:
        raise DataError(f"{source}: no image with a label in it. {_examples(plan.problems)}")
    # Keys are short and plain, and have no dot: WebDataset ends them at the first.
    prefix = re.sub(r"[^A-Za-z0-9_-]", "_", split)[:60]
    order_N = np.arange(plan.rows.num_rows, dtype=np.int64)
    if shuffle is not None:
        order_N = np.random.default_rng(shuffle).permutation(order_N)
    work = _Work(plan, order_N, per_shard, prefix, out)
    identity = {
        "version": VERSION,
        "kind": kind,
        "split": split,
        "per_shard": per_shard,
        "shuffle": shuffle,
        "classes": list(plan.classes),
        "rows": _hash_rows(plan.rows),
    }
    about = {"kind": kind, "source": str(Path(source).resolve()), "split": split}
    with RunDir(out).lock():
        _claim(out, content_key(identity), about)
        kept = _write_all(work, workers, progress)
        if kept:
            progress.note(f"{kept} of {len(work)} shards were finished by an earlier call")
        outcome = write_tables(out, plan, _finished(work))
        _refuse_mostly_bad(outcome, max_bad_fraction)
        settings = asdict(options or Options()) | {"per_shard": per_shard, "shuffle": shuffle}
        record = {"key": content_key(identity), **about, "options": settings}
        write_json(out / _MARK, json.loads(json.dumps(record | outcome.facts(), default=str)))
    return outcome


def _claim(out: Path, key: str, about: dict[str, str]) -> None:
    """Makes the folder ours, or refuses what is in it.

    Raises:
        DataError: It holds files that no import made, or those of another one.
    """
    begun = out / _PARTS / "begun.json"
    if begun.is_file():
        before = json.loads(begun.read_text(encoding="utf-8"))
        if before["key"] != key:
            raise DataError(
                f"{out} holds shards of another import ({before['kind']} of {before['source']}, "
                f"split {before['split']}) or of other lists or options. "
                "Choose another folder, or delete that one"
            )
        return
    foreign = sorted(path.name for path in out.iterdir() if path.name != ".lock")
    if foreign:
        raise DataError(
            f"{out} is not empty ({', '.join(foreign[:3])}) and was not made by an import; "
            "choose another folder"
        )
    begun.parent.mkdir()
    write_json(begun, {"key": key, **about})


def _write_all(work: _Work, workers: int | None, progress: Progress) -> int:
    """Writes what is not finished; returns how many shards were."""
    threads = workers or min(16, (os.cpu_count() or 1) + 4)
    with (
        progress.track("import", len(work.order_N), "images") as advance,
        ThreadPoolExecutor(threads, "import") as pool,
    ):
        futures = [pool.submit(_write_one, work, number) for number in range(len(work))]
        try:
            return sum(_count(future.result(), advance) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _count(result: tuple[bool, int], advance: Advance) -> bool:
    was_finished, n_rows = result
    advance(n_rows)
    return was_finished


def _write_one(work: _Work, number: int) -> tuple[bool, int]:
    """Returns whether the shard was finished, and its rows."""
    rows, keys = work.rows(number)
    shard, part = work.shard(number), work.part(number)
    # Before the images are read: a file that changes meanwhile makes the shard stale, not wrong.
    fingerprint = work.plan.reader.fingerprint(rows)
    if _is_finished(shard, part, fingerprint):
        return True, len(keys)
    part.unlink(missing_ok=True)
    try:
        table = write_shard(work.plan, rows, keys, shard)
        write_part(part, table, fingerprint=fingerprint, shard=shard)
    except OSError as error:
        raise DataError(
            f"{shard}: cannot be written: {error.strerror or error}. "
            "What is finished stays; the same command goes on from there"
        ) from error
    return False, len(keys)


def _is_finished(shard: Path, part: Path, fingerprint: str) -> bool:
    if not part.is_file() or not shard.is_file():
        return False
    facts = read_ipc(part).schema.metadata
    return (
        facts[b"fingerprint"].decode() == fingerprint
        and int(facts[b"size_bytes"]) == shard.stat().st_size
    )


def _finished(work: _Work) -> Iterator[tuple[Path, pa.Table]]:
    for number in range(len(work)):
        yield work.shard(number), read_ipc(work.part(number)).replace_schema_metadata(None)


def _hash_rows(rows: pa.Table) -> str:
    digest = hashlib.sha256()
    for batch in rows.combine_chunks().to_batches(max_chunksize=_ROWS_HASHED):
        digest.update(json.dumps(batch.to_pydict()).encode())
    return digest.hexdigest()


def _examples(problems: pa.Table) -> str:
    rows = problems.slice(0, 3).to_pylist()
    return "; ".join(f"{row['source']}: {row['detail']}" for row in rows)


def _refuse_mostly_bad(outcome: Outcome, max_bad_fraction: float) -> None:
    bad = sum(outcome.problems.values())
    if bad > max_bad_fraction * (bad + outcome.samples):
        raise DataError(
            f"{bad:,} of {bad + outcome.samples:,} entries cannot be used "
            f"({', '.join(f'{reason} {count:,}' for reason, count in outcome.problems.items())}), "
            f"more than --max-bad-fraction {max_bad_fraction}; "
            f"{outcome.out / 'problems.csv'} lists them"
        )
