"""What a fine-tuned model says of the images of other shards.

Shapes: N samples, B batch, K classes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardsieve.config import IndexConfig, Precision
from shardsieve.data.disk import writing_to
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.table import replace_file
from shardsieve.progress import Progress, Silent
from shardsieve.shards.locate import locate_shards
from shardsieve.stages.index import index

if TYPE_CHECKING:
    import torch

    from shardsieve.models.tuned import TunedModel

TOP = 5
# An image without a label that fits can be looked at all the same.
_WITH_IMAGE = (Reason.KEPT, Reason.NO_LABEL, Reason.LABEL_OUTSIDE)
_GROUP_ROWS = 16_384
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("predicted_class", pa.string()),
        ("probability", pa.float32()),
        ("top", pa.list_(pa.int32())),
        ("top_probabilities", pa.list_(pa.float32())),
        ("entropy", pa.float32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Predictions:
    """A finished table of predictions.

    Attributes:
        path: The parquet file, one row per sample in the order of the shards.
        samples: N.
        unreadable: Rows that have a reason in place of a prediction.
        labelled: Rows with a prediction and a label.
        accuracy: Share of these where both agree, None where there are none.
    """

    path: Path
    samples: int
    unreadable: int
    labelled: int
    accuracy: float | None


def predict(
    model: str | Path,
    shards: str | Sequence[str],
    out: str | Path,
    *,
    labels: str = "cls",
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp"),
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Classifies every image of some shards and writes what it says into a parquet table.

    The columns: key, shard, label (null where there is none), predicted, predicted_class,
    probability, top and top_probabilities (the five most probable classes), entropy (nats), and
    for a sample that cannot be read reason and detail in their place. Images stream; memory does
    not grow with their number.

    Args:
        model: `model.safetensors` of `shardsieve tune`, or the run directory it lies in.
        shards: Paths, brace patterns, globs, folders or text lists.
        out: The parquet file; it appears when it is whole.
        labels: Where labels stand, as for `index.labels`, if there are any.
        image: Extensions that mark the image of a sample.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: Number format of forward passes.
        batch_size: Images in one of them.
        workers: Processes that decode; None: one per core, at most 8.
        progress: Where to report; default: nowhere.

    Raises:
        BackboneError: The model is no file that `tune` wrote.
        ShardError: A shard cannot be read.
        DeviceUnavailable: The device was named and cannot be used.
    """
    # torch takes seconds to load.
    from shardsieve.models.precision import resolve_device, resolve_precision
    from shardsieve.models.tuned import load_tuned

    out, model, progress = Path(out), Path(model), progress or Silent()
    file = model / "tune" / "model.safetensors" if model.is_dir() else model
    found = resolve_device(device)
    tuned = load_tuned(file, found)
    paths = locate_shards([shards] if isinstance(shards, str) else shards)
    number_format = resolve_precision(precision, found)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing_to(out.parent), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        settings = IndexConfig(labels=labels, image=image, max_bad_fraction=1.0)
        index(paths, settings, out=Path(folder), progress=progress, classes=tuned.classes)
        samples = SampleIndex.open(Path(folder))
        batches = _batches(tuned, samples, found, number_format, batch_size, workers)
        with progress.track("predict", len(samples), "images") as advance:
            tables = _with(advance, batches)
            return _write(out, tables, len(samples))


def _with(advance: Any, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in batches:
        yield table
        advance(table.num_rows)


def _batches(
    model: TunedModel,
    samples: SampleIndex,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int,
) -> Iterator[pa.Table]:
    """Yields rows of the table in the order of the index."""
    import torch

    from shardsieve.models.precision import autocast
    from shardsieve.shards.dataset import ImageRows, stream

    images = ImageRows(
        [ref.path for ref in samples.shards],
        samples.numbers("shard"),
        samples.numbers("image_offset"),
        samples.numbers("image_size"),
        model.preprocessing.evaluation(),
    )
    readable_N = np.isin(samples.reason_N, _WITH_IMAGE)
    starts = range(0, len(samples), batch_size)
    chunks = [np.arange(start, min(start + batch_size, len(samples))) for start in starts]
    wanted = [rows[readable_N[rows]] for rows in chunks]
    streamed = stream(images, wanted, workers=workers, device=device)
    for rows, (pixels, good, bad) in zip(chunks, streamed, strict=True):
        logits = np.empty((0, len(model.classes)))
        if len(good):
            with torch.inference_mode(), autocast(precision, device):
                output = model.network(model.preprocessing.normalise(pixels, device))
            logits = output.float().cpu().numpy().astype(np.float64)
        why = {row: text or "" for row, _, text in bad}
        yield _table(samples, rows, good, logits, why, model.classes)


def _table(
    samples: SampleIndex,
    rows_B: npt.NDArray[np.int64],
    good_G: npt.NDArray[np.int64],
    logits_GK: npt.NDArray[np.float64],
    undecodable: dict[int, str],
    classes: tuple[str, ...],
) -> pa.Table:
    from scipy.special import entr, softmax

    part = samples.table.slice(int(rows_B[0]), len(rows_B))
    p_GK = softmax(logits_GK, axis=1) if len(good_G) else logits_GK
    top_GT = np.argsort(-p_GK, axis=1, kind="stable")[:, :TOP]
    top_p_GT = np.take_along_axis(p_GK, top_GT, axis=1)
    at = {row: place for place, row in enumerate(good_G.tolist())}
    place_B = [at.get(row) for row in rows_B.tolist()]
    take = pa.array(place_B, pa.int64())
    label_B = part.column("label").to_numpy()
    reason_B = part.column("reason").to_numpy()
    reasons, details = [], part.column("detail").to_pylist()
    for place, row in enumerate(rows_B.tolist()):
        reason = Reason(int(reason_B[place]))
        if row in undecodable:
            reason, details[place] = Reason.UNDECODABLE, undecodable[row]
        # That there is no label is no fault of shards that are to be classified.
        silent = reason in (Reason.KEPT, Reason.NO_LABEL)
        reasons.append(None if silent else reason.word)
        details[place] = None if silent else details[place]
    first_G = top_GT[:, 0] if len(good_G) else np.empty(0, np.int64)
    columns = [
        part.column("key").combine_chunks(),
        _shard_names(samples, part.column("shard").to_numpy()),
        pa.array(label_B, pa.int32(), mask=label_B < 0),
        pa.array(first_G, pa.int32()).take(take),
        pa.array([classes[label] for label in first_G], pa.string()).take(take),
        pa.array(p_GK.max(1) if len(good_G) else [], pa.float32()).take(take),
        pa.array(top_GT.tolist(), pa.list_(pa.int32())).take(take),
        pa.array(top_p_GT.tolist(), pa.list_(pa.float32())).take(take),
        pa.array(entr(p_GK).sum(1), pa.float32()).take(take),
        pa.array(reasons, pa.string()),
        pa.array(details, pa.string()),
    ]
    return pa.table(columns, schema=SCHEMA)


def _shard_names(samples: SampleIndex, shard_B: npt.NDArray[np.int32]) -> pa.DictionaryArray:
    names = [str(ref.path) for ref in samples.shards]
    return pa.DictionaryArray.from_arrays(pa.array(shard_B, pa.int32()), pa.array(names))


def _write(out: Path, tables: Iterator[pa.Table], n_samples: int) -> Predictions:
    temporary = out.with_name(out.name + ".part")
    unreadable = labelled = right = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for table in tables:
            predicted, label = table.column("predicted"), table.column("label")
            unreadable += predicted.null_count
            both = table.filter(pc.and_(predicted.is_valid(), label.is_valid()))
            labelled += both.num_rows
            same = pc.equal(both.column("predicted"), both.column("label"))
            right += pc.sum(same).as_py() or 0
            waiting.append(table)
            if sum(one.num_rows for one in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    replace_file(temporary, out)
    accuracy = right / labelled if labelled else None
    return Predictions(out, n_samples, unreadable, labelled, accuracy)
