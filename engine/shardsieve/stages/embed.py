"""embed: SampleIndex -> FeatureStore. Every image once through the frozen backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import EmbedConfig, Precision
from shardsieve.data.features import shard_file, write_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.data.table import column, read_ipc
from shardsieve.errors import DataError
from shardsieve.models.backbone import Backbone, load_backbone
from shardsieve.models.precision import resolve_precision
from shardsieve.progress import Progress
from shardsieve.shards.dataset import ImageRows, stream
from shardsieve.shards.sources import hash_shard, take_over, write_sources


def embed(
    index: SampleIndex,
    config: EmbedConfig,
    *,
    out: Path,
    device: torch.device,
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
        device: Where the network runs.
        workers: Processes that decode.
        max_bad_fraction: Stop when a larger share of the images cannot be decoded.
        progress: Where to report.
        previous: An earlier feature store, from which the features of unchanged shards are taken.
        made_with: Identifies everything but the shards that the features depend on; nothing is
            taken from a store that was made with something else.

    Raises:
        BackboneError: The backbone or its weights cannot be had.
        ShardError: A shard vanished or changed since it was indexed.
        DataError: Too many images cannot be decoded.
    """
    backbone = load_backbone(config, device)
    precision = resolve_precision(config.precision, device)
    has_image_N = index.numbers("image_offset") >= 0
    has_image_N &= index.reason_N != Reason.TRUNCATED
    shards = index.shards
    known = {} if previous is None else take_over(previous, out, made_with, shards)
    there = [shard_file(out, shard).exists() for shard in range(len(shards))]
    n_known = sum(shards[shard].n_samples for shard in known)
    todo = [shard for shard, finished in enumerate(there) if not finished]
    finished = sum(ref.n_samples for ref, done in zip(shards, there, strict=True) if done)
    n_images, done = int(has_image_N.sum()), 0
    bad = sum(_count_bad(out, shard) for shard, finished in enumerate(there) if finished)
    _refuse_mostly_bad(bad, n_images, max_bad_fraction, [])
    plan = [_batches(index.rows_of(shard), has_image_N, config.batch_size) for shard in todo]
    every_batch = [batch for batches in plan for batch in batches]
    decoded = stream(_images(index, backbone), every_batch, workers=workers, device=device)
    with (
        progress.track("embed", len(index), "images", finished) as advance,
        ThreadPoolExecutor(1) as pool,
    ):
        hashes: dict[int, Future[str]] = {}
        for shard, batches in zip(todo, plan, strict=True):
            store = _ShardFeatures(index.rows_of(shard), backbone.dim)
            for _ in batches:
                pixels, good_rows, refused = next(decoded)
                if len(good_rows):
                    store.add(good_rows, backbone.features(pixels, device, precision))
                for row, _, why in refused:
                    store.refuse(row, Reason.UNDECODABLE, why)
                advance(len(good_rows) + len(refused))
            n_decoded = sum(map(len, batches))
            advance(shards[shard].n_samples - n_decoded)
            done += n_decoded
            bad += store.count(Reason.UNDECODABLE)
            _refuse_mostly_bad(bad, n_images, max_bad_fraction, store.details)
            store.write(out, shard)
            # Its bytes are in memory still.
            hashes[shard] = pool.submit(hash_shard, shards[shard])
        written = [
            known.get(shard) or (hashes.get(shard) or pool.submit(hash_shard, ref)).result()
            for shard, ref in enumerate(shards)
        ]
    write_sources(out, made_with, shards, written)
    counts, facts = _count(out, len(shards)), _facts(backbone, precision)
    return StageResult(counts=counts, facts=facts, notes=_notes(finished, n_known), images=done)


def _facts(backbone: Backbone, precision: Precision) -> dict[str, Any]:
    return {
        "backbone": backbone.name,
        "weights": backbone.weights,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "precision": precision,
        "dim": backbone.dim,
    }


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

    def add(self, rows: npt.NDArray[np.int64], features_BD: torch.Tensor) -> None:
        half = features_BD.half().numpy()
        self._features_ND[rows - self._start] = half
        for row in rows[~np.isfinite(half).all(axis=1)].tolist():
            self._features_ND[row - self._start] = 0
            self.refuse(row, Reason.NOT_FINITE, "the backbone's output does not fit fp16")

    def refuse(self, row: int, reason: Reason, why: str | None) -> None:
        self._reason_N[row - self._start] = reason
        self.details[row - self._start] = why

    def count(self, reason: Reason) -> int:
        return int(np.count_nonzero(self._reason_N == reason))

    def write(self, out: Path, shard: int) -> None:
        write_shard(out, shard, self._features_ND, self._reason_N, self.details)


def _batches(
    rows: slice, has_image_N: npt.NDArray[np.bool_], batch_size: int
) -> list[npt.NDArray[np.int64]]:
    with_image = np.flatnonzero(has_image_N[rows]) + rows.start
    return [with_image[i : i + batch_size] for i in range(0, len(with_image), batch_size)]


def _images(index: SampleIndex, backbone: Backbone) -> ImageRows:
    return ImageRows(
        [ref.path for ref in index.shards],
        index.numbers("shard"),
        index.numbers("image_offset"),
        index.numbers("image_size"),
        backbone.preprocessing.evaluation(),
    )


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
