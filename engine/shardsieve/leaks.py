"""Samples whose image also stands in shards that are held out for validation or test.

Exact: the same bytes. Read are the tar headers of the held-out shards, the last bytes of images
that are as long as one on the other side, and whole images where those agree, too.

Shapes: N samples, C candidates, H held-out candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardsieve.config import Config
from shardsieve.data.index import SCHEMA, SampleIndex
from shardsieve.data.location import ShardPath, shard_path
from shardsieve.data.reason import Reason
from shardsieve.data.record import content_key
from shardsieve.engines.executor import Executor, Job
from shardsieve.indexing import read_shards
from shardsieve.progress import Progress
from shardsieve.shards.contents import DIGEST_BYTES, ImageHasher, ShardImages, images_of

_WHERE = ("image_offset", "image_size")
# In the folder of the stage: the rows of the held-out shards.
FOLDER = "held_out"
# A held-out sample needs an image to be whole, and no label.
_PLACES = pa.schema([SCHEMA.field(n) for n in ("key", "shard", *_WHERE, "label")])
_HAS_IMAGE = (Reason.KEPT, Reason.NO_LABEL, Reason.LABEL_OUTSIDE)


@dataclass(frozen=True, slots=True)
class Leaks:
    """Which samples also stand in held-out shards.

    Attributes:
        key_N: N keys of the first held-out sample with the same image, null for none.
        label_N: (N,) i32, the label that it has there, -1 for none.
        made_from: Hash of the samples and shards that were compared; "" when there are none.
    """

    key_N: pa.Array
    label_N: npt.NDArray[np.int32]
    made_from: str = ""

    @classmethod
    def none(cls, n_samples: int) -> Leaks:
        """Returns that nothing was held out."""
        return cls(pa.nulls(n_samples, pa.string()), np.full(n_samples, -1, np.int32))

    @property
    def found_N(self) -> npt.NDArray[np.bool_]:
        """(N,) samples that stand in both."""
        found_N: npt.NDArray[np.bool_] = self.key_N.is_valid().to_numpy(zero_copy_only=False)
        return found_N

    def facts(self, label_N: npt.NDArray[np.int32]) -> dict[str, Any]:
        """Counts them, and those with another label than `label_N`, for the record."""
        other_N = (label_N >= 0) & (self.label_N >= 0) & (label_N != self.label_N)
        return {
            "samples": int(np.count_nonzero(self.found_N)),
            "other_label": int(np.count_nonzero(other_N & self.found_N)),
            "made_from": self.made_from,
        }

    def notes(self, label_N: npt.NDArray[np.int32]) -> list[str]:
        """Says how many there are, and how many under another label than `label_N`."""
        facts = self.facts(label_N)
        if not facts["samples"]:
            return []
        return [
            f"{facts['samples']:,} samples also stand in the held-out shards, byte for byte, "
            f"{facts['other_label']:,} of them under another label (column leak_of)"
        ]


def find_leaks(
    index: SampleIndex,
    config: Config,
    identity: Mapping[str, Any],
    *,
    out: Path,
    earlier: tuple[Path, Mapping[str, Any]] | None,
    executor: Executor,
    threads: int,
    progress: Progress,
) -> Leaks:
    """Compares the images of an index with those of the shards of `select.held_out`.

    Args:
        index: The samples.
        config: Which shards are held out, and how shards are read.
        identity: Of the selection.
        out: Folder of the selection.
        earlier: Folder and facts of a finished selection: if it compared the same, its result is
            taken over, and shards that have not changed are not read again.
        executor: Who reads the shards.
        threads: Shards that are read side by side.
        progress: Where to report.

    Raises:
        ShardError: A shard is gone, is no tar, or changed since it was indexed.
        LabelError: The labels of the held-out shards do not fit the classes.
    """
    if not config.select.held_out:
        return Leaks.none(len(index))
    made_from = content_key({name: identity[name] for name in ("inputs", "held_out")})
    if earlier is not None and earlier[1].get("leaks", {}).get("made_from") == made_from:
        return _read(earlier[0] / "scores.parquet", made_from)
    rows = read_shards(
        [shard_path(text) for text in config.select.held_out],
        config.index.model_copy(update={"labels": config.held_out_labels}),
        out / FOLDER,
        earlier[0] / FOLDER if earlier is not None else None,
        threads,
        progress,
        executor,
        name="held out",
    )
    size_N, usable_N = index.numbers("image_size"), index.readable_N
    sizes = np.unique(size_N[usable_N])
    batches = [_may_match(batch, sizes) for _, batch in rows.finished(index.classes)]
    held = pa.Table.from_batches(batches, _PLACES).combine_chunks()
    size_H = held.column("image_size").to_numpy()
    candidates = np.flatnonzero(usable_N & np.isin(size_N, size_H))
    ours = _Images(
        [ref.path for ref in index.shards],
        *(index.numbers(name)[candidates] for name in ("shard", *_WHERE)),
    )
    theirs = _Images(
        [ref.path for ref in rows.refs],
        *(held.column(name).to_numpy() for name in ("shard", *_WHERE)),
    )
    at_C = _same(ours, theirs, partial(_hashed, out, executor, threads, progress))
    found = at_C >= 0
    place_N = np.full(len(index), -1, np.int64)
    place_N[candidates[found]] = at_C[found]
    taken = pa.array(place_N, mask=place_N < 0)
    return Leaks(
        held.column("key").combine_chunks().take(taken),
        pc.fill_null(held.column("label").combine_chunks().take(taken), -1).to_numpy(),
        made_from,
    )


def _read(scores: Path, made_from: str) -> Leaks:
    table = pq.read_table(scores, columns=["leak_of", "leak_label"])
    label_N = pc.fill_null(table.column("leak_label"), -1).to_numpy().astype(np.int32)
    return Leaks(table.column("leak_of").combine_chunks(), label_N, made_from)


def _may_match(batch: pa.RecordBatch, sizes: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Returns the held-out samples with an image as long as one of ours."""
    has_image_B = np.isin(batch.column("reason").to_numpy(), _HAS_IMAGE)
    wanted_B = has_image_B & np.isin(batch.column("image_size").to_numpy(), sizes)
    return batch.select(_PLACES.names).filter(pa.array(wanted_B))


@dataclass(frozen=True, slots=True)
class _Images:
    """Images by shard and place, in the order of the shards."""

    paths: Sequence[ShardPath]
    shard_C: npt.NDArray[np.int32]
    offset_C: npt.NDArray[np.int64]
    size_C: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard_C)

    def only(self, chosen_C: npt.NDArray[np.bool_]) -> _Images:
        return _Images(
            self.paths, self.shard_C[chosen_C], self.offset_C[chosen_C], self.size_C[chosen_C]
        )

    def pieces(self) -> list[tuple[int, ShardImages]]:
        starts = np.flatnonzero(np.diff(self.shard_C, prepend=-1))
        ends = np.append(starts, len(self))[1:]
        spans = [slice(*ends) for ends in zip(starts.tolist(), ends.tolist(), strict=True)]
        paths = [self.paths[shard] for shard in self.shard_C[starts].tolist()]
        images = [
            ShardImages(path, self.offset_C[span], self.size_C[span])
            for path, span in zip(paths, spans, strict=True)
        ]
        return list(enumerate(images))


def _same(
    ours: _Images, theirs: _Images, hashed: Callable[[_Images, bool], pa.Array]
) -> npt.NDArray[np.int64]:
    """Returns (C,) the first of their images that is the same as each of ours, -1 for none."""
    ours_C, theirs_H = hashed(ours, False), hashed(theirs, False)
    alike_C = _bools(pc.is_in(ours_C, value_set=theirs_H))
    alike_H = _bools(pc.is_in(theirs_H, value_set=ours_C))
    whole_C, whole_H = hashed(ours.only(alike_C), True), hashed(theirs.only(alike_H), True)
    places = pc.fill_null(pc.index_in(whole_C, value_set=whole_H), -1).to_numpy()
    at_C = np.full(len(ours), -1, np.int64)
    at_C[alike_C] = np.append(np.flatnonzero(alike_H), -1)[places]
    return at_C


def _bools(values: pa.Array) -> npt.NDArray[np.bool_]:
    array: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False)
    return array


def _hashed(
    out: Path,
    executor: Executor,
    threads: int,
    progress: Progress,
    images: _Images,
    whole: bool,
) -> pa.FixedSizeBinaryArray:
    """Returns the hashes of the images, or of their ends, in order."""
    pieces = images.pieces()
    job = Job("leaks", "images", partial(ImageHasher, whole), images_of)
    with progress.track("leaks", len(images), "images") as advance:
        done = executor.map(job, pieces, out, advance, threads=max(1, threads))
        found = {number: digests for (number, _), digests in done}
    empty = np.empty((0, DIGEST_BYTES), np.uint8)
    all_C = np.concatenate([empty, *(found[number] for number, _ in pieces)])
    size = pa.binary(DIGEST_BYTES)
    return pa.Array.from_buffers(size, len(all_C), [None, pa.py_buffer(all_C.tobytes())])
