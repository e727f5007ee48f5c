"""embed: SampleIndex -> FeatureStore. Every image once through the frozen backbone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from shardsieve.config import EmbedConfig
from shardsieve.data.features import shard_file, write_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.data.table import column, read_ipc
from shardsieve.embedding import Embedded, Runner, time_spent
from shardsieve.engines.executor import Executor, Job
from shardsieve.engines.local import Local
from shardsieve.errors import DataError
from shardsieve.progress import Advance, Progress
from shardsieve.shards.ahead import Ahead
from shardsieve.shards.prefetch import Rows
from shardsieve.shards.sources import hash_shard, refuse_changed, take_over, write_sources


@dataclass(frozen=True, slots=True)
class _Piece:
    """A shard that is to be embedded.

    Attributes:
        shard: Its number in the run.
        index: What its rows are read from; pieces that are done together share it.
        at: Its number there.
    """

    shard: int
    index: SampleIndex
    at: int


@dataclass(frozen=True, slots=True)
class _Embedded:
    """A shard whose features are on disk.

    Attributes:
        decoded: Images that were decoded, or were to be.
        bad: Those that could not be.
        examples: What was wrong with some of them.
        sha256: Of the shard.
        facts: What the features are made with.
        seconds: Where the time went, by part, all threads added up.
    """

    samples: int
    decoded: int
    bad: int
    examples: list[str]
    sha256: str
    facts: dict[str, Any]
    seconds: dict[str, float]


def embed(
    index: SampleIndex,
    config: EmbedConfig,
    *,
    out: Path,
    devices: Sequence[torch.device],
    workers: int,
    max_bad_fraction: float,
    progress: Progress,
    previous: Path | None = None,
    made_with: str = "",
    executor: Executor | None = None,
) -> StageResult:
    """Decodes every image, runs the frozen backbone and caches the features as f16.

    A file per shard appears when the shard is done; shards whose file is there already are not
    done again. Batches never span shards, so the bytes do not depend on where a run was resumed.

    Args:
        index: The samples; every row with an image is embedded, whatever its label.
        config: Backbone, image size, batch size and precision.
        out: Folder of the feature store.
        devices: Where the network runs: one, or several that share the shards.
        workers: Threads that decode; on a CPU they run the network, too.
        max_bad_fraction: Stop when a larger share of the images cannot be decoded.
        progress: Where to report.
        previous: An earlier feature store, from which the features of unchanged shards are taken.
        made_with: Identifies everything but the shards that the features depend on; nothing is
            taken from a store that was made with something else.
        executor: Who embeds the shards; default: this process.

    Raises:
        BackboneError: The backbone or its weights cannot be had.
        DeviceUnavailable: The engine cannot run here.
        ShardError: A shard vanished or changed since it was indexed.
        DataError: Too many images cannot be decoded.
    """
    shards = index.shards
    known = {} if previous is None else take_over(previous, out, made_with, shards)
    there = [shard_file(out, shard).exists() for shard in range(len(shards))]
    n_known = sum(shards[shard].n_samples for shard in known)
    todo = pieces_of(index, there)
    finished = sum(ref.n_samples for ref, done in zip(shards, there, strict=True) if done)
    n_images, done = int(np.count_nonzero(_has_image(index))), 0
    bad = sum(_count_bad(out, shard) for shard, finished in enumerate(there) if finished)
    _refuse_mostly_bad(bad, n_images, max_bad_fraction, [])
    make = partial(ShardEmbedder, config, devices, workers)
    job = Job("embed", "images", make, _samples_of, detach=_apart, device=str(devices[0]))
    hashes, facts = dict(known), None
    spent: Counter[str] = Counter()
    threads = len(devices) if len(devices) > 1 else 0
    start = time.perf_counter()
    with progress.track("embed", len(index), "images", finished) as advance:
        where = executor or Local()
        for piece, embedded in where.map(job, todo, out, advance, threads=threads):
            hashes[piece.shard], facts = embedded.sha256, embedded.facts
            spent.update(embedded.seconds)
            done += embedded.decoded
            bad += embedded.bad
            _refuse_mostly_bad(bad, n_images, max_bad_fraction, embedded.examples)
        wall_s = time.perf_counter() - start
        with ThreadPoolExecutor(1) as pool:
            # Of shards that an interrupted call embedded.
            missing = [shard for shard in range(len(shards)) if shard not in hashes]
            hashes |= zip(missing, pool.map(hash_shard, [shards[i] for i in missing]), strict=True)
    write_sources(out, made_with, shards, [hashes[shard] for shard in range(len(shards))])
    if facts is None:
        # For the record: what the features are made with.
        facts = make().facts
    facts = {**facts, "time": time_spent(spent, wall_s)}
    counts = _count(out, len(shards))
    return StageResult(counts=counts, facts=facts, notes=_notes(finished, n_known), images=done)


def pieces_of(index: SampleIndex, finished: Sequence[bool]) -> list[_Piece]:
    """Returns the shards that are still to be embedded."""
    return [_Piece(shard, index, shard) for shard, done in enumerate(finished) if not done]


class ShardEmbedder:
    """The network on one device or several, and how images come to it, wherever that is."""

    def __init__(self, config: EmbedConfig, devices: Sequence[torch.device], workers: int) -> None:
        """Loads the network.

        Args:
            config: The backbone, with a precision that all workers have.
            devices: Where it runs; each can do shards beside the others.
            workers: Threads that decode; on a CPU they run the network, too.
        """
        runners = [Runner(config, device, workers // len(devices)) for device in devices]
        self.facts = runners[0].facts
        self._idle: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._idle.put(runner)

    def run(self, pieces: Sequence[_Piece], out: Path, advance: Advance) -> Iterator[_Embedded]:
        """Embeds shards one after the other while the next ones are decoded."""
        if not pieces:
            return
        runner = self._idle.get()
        try:
            yield from _embed_shards(runner, pieces, out, advance)
        finally:
            self._idle.put(runner)

    def close(self) -> None:
        """Nothing stays open."""


def _embed_shards(
    runner: Runner, pieces: Sequence[_Piece], out: Path, advance: Advance
) -> Iterator[_Embedded]:
    index = pieces[0].index
    has_image_N = _has_image(index)
    places = [index.rows_of(piece.at) for piece in pieces]
    plan = [_batches(rows, has_image_N, runner.batch_size) for rows in places]
    runner.read_from(index)
    told: dict[str, float] = dict(runner.clock.seconds)
    embedded = runner.run([batch for batches in plan for batch in batches])
    paths = [index.shards[piece.at].path for piece in pieces]
    with ThreadPoolExecutor(1) as pool, closing(embedded), Ahead(paths) as ahead:
        for at, (piece, rows, batches) in enumerate(zip(pieces, places, plan, strict=True)):
            ahead.reached(at)
            features, ref = _ShardFeatures(rows, runner.dim), index.shards[piece.at]
            # Beside the network: the bytes are in memory then.
            sha256 = pool.submit(hash_shard, ref)
            for _ in batches:
                done = next(embedded)
                features.add(done)
                advance(len(done.rows) + len(done.refused))
            n_samples, n_decoded = rows.stop - rows.start, sum(map(len, batches))
            advance(n_samples - n_decoded)
            digest = sha256.result()
            if isinstance(ref.path, Path):
                # The copy of a remote shard is one version of it; a local one may have changed
                # after it was hashed.
                refuse_changed(ref)
            features.write(out, piece.shard)
            now = dict(runner.clock.seconds)
            yield _Embedded(
                n_samples,
                n_decoded,
                features.count(Reason.UNDECODABLE),
                [why for why in features.details if why][:3],
                digest,
                runner.facts,
                {name: spent - told.get(name, 0.0) for name, spent in now.items()},
            )
            told = now


def _apart(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Returns the same shards with an index of their own, which holds nothing else."""
    index = pieces[0].index
    refs = tuple(index.shards[piece.at] for piece in pieces)
    rows = [index.rows_of(piece.at) for piece in pieces]
    shard = np.repeat(np.arange(len(refs), dtype=np.int32), [ref.n_samples for ref in refs])
    columns = {
        name: np.concatenate([index.numbers(name)[part] for part in rows])
        for name in ("image_offset", "image_size", "reason")
    }
    # The key is for messages.
    keys = pa.chunked_array(
        [index.keys_N.slice(part.start, part.stop - part.start) for part in rows]
    )
    own = SampleIndex(pa.table({"key": keys, "shard": shard, **columns}), refs, ())
    return [_Piece(piece.shard, own, at) for at, piece in enumerate(pieces)]


def _samples_of(embedded: _Embedded) -> int:
    return embedded.samples


def _has_image(index: SampleIndex) -> npt.NDArray[np.bool_]:
    has_image_N = index.numbers("image_offset") >= 0
    return has_image_N & (index.reason_N != Reason.TRUNCATED)


def _notes(finished: int, n_known: int) -> list[str]:
    notes = []
    if n_known:
        notes.append(f"{n_known:,} samples lie in shards that have not changed since the last run")
    if finished > n_known:
        notes.append(f"{finished - n_known:,} samples came from an interrupted run")
    return notes


class _ShardFeatures:
    """The features of one shard while they are being computed."""

    def __init__(self, rows: slice, dim: int) -> None:
        n_samples = rows.stop - rows.start
        self._start = rows.start
        self._features_ND = np.zeros((n_samples, dim), np.float16)
        self._reason_N = np.zeros(n_samples, np.uint8)
        self.details: list[str | None] = [None] * n_samples

    def add(self, done: Embedded) -> None:
        self._features_ND[done.rows - self._start] = done.features_BD
        for row in done.rows[~np.isfinite(done.features_BD).all(axis=1)].tolist():
            self._features_ND[row - self._start] = 0
            self._refuse(row, Reason.NOT_FINITE, "the backbone's output does not fit fp16")
        for row, why in done.refused:
            self._refuse(row, Reason.UNDECODABLE, why)

    def _refuse(self, row: int, reason: Reason, why: str | None) -> None:
        self._reason_N[row - self._start] = reason
        self.details[row - self._start] = why

    def count(self, reason: Reason) -> int:
        return int(np.count_nonzero(self._reason_N == reason))

    def write(self, out: Path, shard: int) -> None:
        write_shard(out, shard, self._features_ND, self._reason_N, self.details)


def _batches(rows: slice, has_image_N: npt.NDArray[np.bool_], batch_size: int) -> list[Rows]:
    with_image = np.flatnonzero(has_image_N[rows]) + rows.start
    return [with_image[i : i + batch_size] for i in range(0, len(with_image), batch_size)]


def _refuse_mostly_bad(
    bad: int, n_images: int, max_bad_fraction: float, details: Sequence[str | None]
) -> None:
    if bad <= max_bad_fraction * n_images:
        return
    examples = "; ".join([why for why in details if why][:3])
    raise DataError(
        f"{bad:,} images so far cannot be decoded, more than index.max_bad_fraction = "
        f"{max_bad_fraction} of all {n_images:,}. "
        + (f"For example: {examples}. " if examples else "")
        + "Look at the shards, or raise the limit"
    )


def _reasons(out: Path, shard: int) -> npt.NDArray[np.uint8]:
    return column(read_ipc(shard_file(out, shard)), "reason")


def _count_bad(out: Path, shard: int) -> int:
    return int(np.count_nonzero(_reasons(out, shard) == Reason.UNDECODABLE))


def _count(out: Path, n_shards: int) -> dict[str, int]:
    embedded = total = 0
    for shard in range(n_shards):
        reasons = _reasons(out, shard)
        total += len(reasons)
        embedded += int(np.count_nonzero(reasons == Reason.KEPT))
    return {"samples": total, "embedded": embedded}
