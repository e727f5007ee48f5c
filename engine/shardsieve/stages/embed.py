"""embed: SampleIndex -> FeatureStore. Every image once through the frozen backbone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import EmbedConfig
from shardsieve.data.features import shard_file, write_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.data.table import column, read_ipc
from shardsieve.embedding import Embedded, Runner, add_up
from shardsieve.errors import DataError
from shardsieve.progress import Advance, Progress
from shardsieve.shards.prefetch import Rows
from shardsieve.shards.sources import hash_shard, take_over, write_sources


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
    todo = [shard for shard, finished in enumerate(there) if not finished]
    finished = sum(ref.n_samples for ref, done in zip(shards, there, strict=True) if done)
    store = _Store(index, out, max_bad_fraction)
    store.count_bad_of(shard for shard, finished in enumerate(there) if finished)
    # At least one, for the record: what the features are made with.
    runners = [Runner(index, config, device, workers // len(devices)) for device in devices]
    with (
        progress.track("embed", len(index), "images", finished) as advance,
        ThreadPoolExecutor(1) as hashing,
    ):
        store.begin(advance, hashing)
        start = time.perf_counter()
        _share_out(runners, todo, store)
        wall_s = time.perf_counter() - start
        written = [
            known.get(shard)
            or (store.hashes.get(shard) or hashing.submit(hash_shard, ref)).result()
            for shard, ref in enumerate(shards)
        ]
    write_sources(out, made_with, shards, written)
    facts = runners[0].facts | {"time": add_up([runner.clock for runner in runners], wall_s)}
    return StageResult(
        counts=_count(out, len(shards)),
        facts=facts,
        notes=_notes(finished, n_known),
        images=store.n_done,
    )


def _share_out(runners: Sequence[Runner], todo: Sequence[int], store: _Store) -> None:
    if len(runners) == 1:
        _embed_shards(runners[0], todo, store)
        return
    with ThreadPoolExecutor(len(runners)) as pool:
        parts = [todo[number :: len(runners)] for number in range(len(runners))]
        jobs = [
            pool.submit(_embed_shards, runner, part, store)
            for runner, part in zip(runners, parts, strict=True)
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            # One that failed, or a user who interrupts, stops the others at their next batch.
            store.stopped = True


def _embed_shards(runner: Runner, todo: Sequence[int], store: _Store) -> None:
    plan = [store.batches_of(shard, runner.batch_size) for shard in todo]
    embedded = runner.run([batch for batches in plan for batch in batches])
    try:
        for shard, batches in zip(todo, plan, strict=True):
            features = _ShardFeatures(store.index.rows_of(shard), runner.dim)
            for _ in batches:
                if store.stopped:
                    return
                done = next(embedded)
                features.add(done)
                store.advance(len(done.rows) + len(done.refused))
            store.finish(shard, features, sum(map(len, batches)))
    finally:
        embedded.close()


def _notes(finished: int, n_known: int) -> list[str]:
    notes = []
    if n_known:
        notes.append(f"{n_known:,} samples lie in shards that have not changed since the last run")
    if finished > n_known:
        notes.append(f"{finished - n_known:,} samples came from an interrupted run")
    return notes


class _Store:
    """The feature store while it is being made, by one device or several."""

    def __init__(self, index: SampleIndex, out: Path, max_bad_fraction: float) -> None:
        self.index = index
        self.stopped = False
        self.n_done = 0
        self.hashes: dict[int, Future[str]] = {}
        self._out = out
        self._max_bad_fraction = max_bad_fraction
        self._has_image_N = index.numbers("image_offset") >= 0
        self._has_image_N &= index.reason_N != Reason.TRUNCATED
        self._n_images = int(self._has_image_N.sum())
        self._bad = 0
        self._lock = threading.Lock()
        self._advance: Advance = lambda amount: None
        self._hashing: ThreadPoolExecutor

    def begin(self, advance: Advance, hashing: ThreadPoolExecutor) -> None:
        self._advance, self._hashing = advance, hashing

    def count_bad_of(self, shards: Iterator[int]) -> None:
        self._bad += sum(_count_bad(self._out, shard) for shard in shards)
        _refuse_mostly_bad(self._bad, self._n_images, self._max_bad_fraction, [])

    def batches_of(self, shard: int, size: int) -> list[Rows]:
        rows = self.index.rows_of(shard)
        with_image = np.flatnonzero(self._has_image_N[rows]) + rows.start
        return [with_image[i : i + size] for i in range(0, len(with_image), size)]

    def advance(self, amount: int) -> None:
        with self._lock:
            self._advance(amount)

    def finish(self, shard: int, features: _ShardFeatures, n_decoded: int) -> None:
        with self._lock:
            self._advance(self.index.shards[shard].n_samples - n_decoded)
            self.n_done += n_decoded
            self._bad += features.count(Reason.UNDECODABLE)
            _refuse_mostly_bad(self._bad, self._n_images, self._max_bad_fraction, features.details)
        features.write(self._out, shard)
        # Its bytes are in memory still.
        self.hashes[shard] = self._hashing.submit(hash_shard, self.index.shards[shard])


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
