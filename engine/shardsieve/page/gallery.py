"""Samples with their thumbnails, for the page.

Shapes: N samples.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from shardsieve.data.index import SampleIndex
from shardsieve.errors import ShardError
from shardsieve.page.queues import Queue
from shardsieve.page.verdicts import Verdicts
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.images import decode

SIDE = 112


def gallery(
    index: SampleIndex,
    scores: pa.Table,
    verdicts: Verdicts,
    shown: Sequence[Queue],
    suggested_N: npt.NDArray[np.int32],
) -> list[dict[str, Any]]:
    """Returns the samples of some galleries with their images; one in several stands there once.

    Args:
        index: Where the images lie.
        scores: For reasons and details.
        verdicts: The scores as arrays.
        shown: The galleries, cut to what is to be seen.
        suggested_N: (N,) i32 the class each sample looks like, -1 where there is none.

    Returns:
        Key, shard, the names of its galleries, given class and the one it looks like, p_clean,
        loss (nats), reason, detail, and `image`: a data URI with the size to show it at, or
        `problem` when there is none.
    """
    galleries: dict[int, list[str]] = {}
    for queue in shown:
        for row in queue.rows_R.tolist():
            galleries.setdefault(row, []).append(queue.name)
    rows = np.array(list(galleries), np.int64)
    keys = index.keys_N.take(rows).to_pylist()
    taken = scores.select(["reason", "detail"]).take(rows).to_pylist()
    where = [index.numbers(name)[rows].tolist() for name in ("shard", "image_offset", "image_size")]
    files = ShardFiles([ref.path for ref in index.shards])
    items = []
    for row, key, known, shard, offset, size in zip(
        rows.tolist(), keys, taken, *where, strict=True
    ):
        item = {
            "key": key,
            **known,
            "shard": index.shards[shard].path.name,
            "galleries": galleries[row],
            "given": _name(index, int(verdicts.label_N[row])),
            "looks": _name(index, int(suggested_N[row])),
            "p_clean": _number(verdicts.p_clean_N[row]),
            "loss": _number(verdicts.loss_N[row]),
            "image": None,
            "problem": "no image" if size <= 0 else None,
        }
        if size > 0:
            try:
                item["image"] = thumbnail(files.read(shard, offset, size))
            except (ShardError, ValueError) as error:
                item["problem"] = f"cannot be read any more: {error}"
        items.append(item)
    files.close()
    return items


def _name(index: SampleIndex, label: int) -> str | None:
    return index.classes[label] if label >= 0 else None


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def thumbnail(data: bytes) -> dict[str, Any]:
    """Returns a data URI of the image, no side above `SIDE`, and the size to show it at.

    Raises:
        ValueError: The bytes cannot be decoded.
    """
    image = decode(data)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    scale = SIDE / max(image.size)
    packed = io.BytesIO()
    # The page enlarges small originals pixel by pixel, and every error of the codec with them.
    quality, subsampling = (95, "4:4:4") if scale > 1 else (82, "4:2:0")
    image.save(packed, "JPEG", quality=quality, subsampling=subsampling)
    return {
        "uri": "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii"),
        "width": max(1, round(image.width * scale)),
        "height": max(1, round(image.height * scale)),
        "enlarged": scale > 1,
    }
