"""A run in the formats of other tools: FiftyOne, cleanlab, Label Studio.

Shapes: N samples, R exported samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from shardsieve.data.decisions import Decision, SampleName, read_decisions
from shardsieve.errors import DataError, ShardError
from shardsieve.page.verdicts import in_group
from shardsieve.review.samples import Filter, Samples
from shardsieve.run import Run

Only = Literal["removed", "decided", "judged"]
_BLOCK = 4096
_ENDINGS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
}


def export_cleanlab(run: Path, file: Path) -> int:
    """Writes the columns of cleanlab's label issues, a row per sample of the run.

    `is_label_issue`, `label_score` (p_clean: low is bad), `given_label` and `predicted_label` as
    `Datalab.get_issues("label")` calls them, behind `key` and `shard`; null where a sample could
    not be judged.

    Args:
        run: The run directory.
        file: A name that ends in .parquet or .csv.

    Returns:
        How many rows.

    Raises:
        DataError: The file has another ending or cannot be written.
    """
    opened = Run(run)
    scores, names = opened.scores, opened.index.classes
    removed = in_group(scores, "removed")
    unjudged_N = scores.column("p_clean").is_null().to_numpy()
    table = pa.table(
        {
            "key": scores.column("key"),
            "shard": scores.column("shard"),
            "is_label_issue": pa.array(removed.to_numpy(), mask=unjudged_N),
            "label_score": scores.column("p_clean"),
            "given_label": _named(scores.column("label"), names),
            "predicted_label": _named(scores.column("pred"), names),
        }
    )
    try:
        if file.suffix == ".parquet":
            pq.write_table(table, file, compression="zstd")
        elif file.suffix == ".csv":
            pyarrow.csv.write_csv(table, file)
        else:
            raise DataError(f"{file}: name a file that ends in .csv or .parquet")
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error}") from error
    return int(table.num_rows)


def export_fiftyone(run: Path, folder: Path, only: Only = "removed") -> int:
    """Writes a `FiftyOneImageClassificationDataset`: `data/` and `labels.json`.

    Each image has the given label, p_clean as its confidence, and as attributes the key, the
    prediction, the reason and the decision.

    Returns:
        How many samples.

    Raises:
        DataError: The folder is not empty, or cannot be written to.
    """
    samples = Samples(run)

    def entry(item: dict[str, Any], file: Path) -> str:
        names = ("key", "shard", "suggested", "loss", "reason", "decision", "label")
        label = {
            "label": samples.index.classes.index(item["given"]),
            "confidence": item["p_clean"],
            "attributes": {name: item[name] for name in names if item[name] is not None},
        }
        return f"{json.dumps(file.stem)}: {json.dumps(label)}"

    head = f'{{"classes": {json.dumps(list(samples.index.classes))}, "labels": {{\n'
    return _export(run, samples, folder, only, ("data", "labels.json"), entry, head, "\n}}\n")


def export_label_studio(run: Path, folder: Path, only: Only = "removed") -> int:
    """Writes tasks with predictions: `tasks.json`, `images/`, and the labelling interface.

    `images/` must be served by Label Studio's local storage, whose document root is `folder`. The
    prediction is the class that the sample looks like; its score is how sure the run is of it:
    p_clean where that is the given class, and 1 - p_clean where it is another.

    Returns:
        How many tasks.

    Raises:
        DataError: The folder is not empty, or cannot be written to.
    """
    samples = Samples(run)
    model = f"shardsieve {version('shardsieve')}"

    def entry(item: dict[str, Any], file: Path) -> str:
        choice = item["label"] or item["suggested"]
        p_clean = item["p_clean"]
        result = {
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [choice]},
        }
        score = p_clean if choice == item["given"] else 1 - p_clean
        data = {name: item[name] for name in ("key", "shard", "given", "p_clean", "reason")}
        return json.dumps(
            {
                "data": {"image": f"/data/local-files/?d=images/{file.name}", **data},
                "predictions": [{"model_version": model, "score": score, "result": [result]}],
            }
        )

    count = _export(run, samples, folder, only, ("images", "tasks.json"), entry, "[\n", "\n]\n")
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in samples.index.classes)
    (folder / "interface.xml").write_text(
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Text name="given" value="labelled $given"/>\n'
        '  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}  </Choices>\n</View>\n",
        encoding="utf-8",
    )
    return count


def _export(
    run: Path,
    samples: Samples,
    folder: Path,
    only: Only,
    names: tuple[str, str],
    entry: Callable[[dict[str, Any], Path], str],
    head: str,
    tail: str,
) -> int:
    """Writes the images one by one and a file with an entry for each."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: not an empty folder; choose another one")
    images, listing = folder / names[0], folder / names[1]
    count = 0
    try:
        images.mkdir(parents=True)
        with listing.open("w", encoding="utf-8") as out:
            out.write(head)
            for item in _items(run, samples, only):
                file = _write_image(samples, item, images)
                if file is None:
                    continue
                out.write((",\n" if count else "") + entry(item, file))
                count += 1
            out.write(tail)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to: {error.strerror}") from error
    return count


def _items(run: Path, samples: Samples, only: Only) -> Iterator[dict[str, Any]]:
    """Yields what is known of each sample, in the order of the shards."""
    standing: dict[SampleName, Decision] = read_decisions(run).standing
    rows = _rows(samples, only, standing)
    for start in range(0, len(rows), _BLOCK):
        yield from samples.describe(rows[start : start + _BLOCK], standing)


def _rows(
    samples: Samples, only: Only, standing: dict[SampleName, Decision]
) -> npt.NDArray[np.int64]:
    if only == "decided":
        rows = np.sort(samples.rows("decided", Filter(), standing))
        return rows[samples.judged_N[rows]]
    return np.flatnonzero(samples.removed_N if only == "removed" else samples.judged_N)


def _write_image(samples: Samples, item: dict[str, Any], folder: Path) -> Path | None:
    try:
        media_type, _, pieces = samples.image(item["row"])
    except ShardError:
        raise
    except ValueError:
        # It could be decoded when the features were made: only a changed shard gets here.
        return None
    # A key may hold anything, `../` too.
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", item["key"])[-80:].strip("-")
    file = folder / f"{item['row']:09d}-{readable}.{_ENDINGS[media_type]}"
    with file.open("wb") as out:
        for piece in pieces:
            out.write(piece)
    return file


def _named(labels: pa.ChunkedArray, names: tuple[str, ...]) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array(list(names), pa.string()).take(chunk) for chunk in labels.chunks], pa.string()
    )
