"""The most suspicious images: which ones, and their thumbnails.

Shapes: N samples, K classes, R removed samples.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from shardsieve.data.index import SampleIndex
from shardsieve.errors import ShardError
from shardsieve.page.verdicts import Verdicts
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.images import decode

SIDE = 112


def most_suspicious(verdicts: Verdicts, n_classes: int, most: int) -> npt.NDArray[np.int64]:
    """Picks removed samples: the lowest p_clean first, then the highest loss.

    No class gives more than its share, which is the smallest number that fills the gallery when no
    class gives more; so one bad class does not hide the others. Ties fall to the earlier row.

    Args:
        verdicts: The scores.
        n_classes: K.
        most: How many to pick.

    Returns:
        At most `most` rows, the most suspicious first.
    """
    rows_R = np.flatnonzero(verdicts.removed_N)
    order = np.lexsort((rows_R, -verdicts.loss_N[rows_R], verdicts.p_clean_N[rows_R]))
    rows_R = rows_R[order]
    labels_R = verdicts.label_N[rows_R]
    counts_K = np.bincount(labels_R, minlength=n_classes)
    share = _fair_share(counts_K, most)
    # Position of each row among those of its class.
    by_class = np.argsort(labels_R, kind="stable")
    starts_K = np.cumsum(counts_K) - counts_K
    rank_R = np.empty(len(rows_R), np.int64)
    rank_R[by_class] = np.arange(len(rows_R)) - starts_K[labels_R[by_class]]
    # The last round may be longer than what is left of the gallery: its most suspicious go in.
    chosen_R = rank_R < share - 1
    last = np.flatnonzero(rank_R == share - 1)
    chosen_R[last[: most - int(chosen_R.sum())]] = True
    return rows_R[chosen_R]


def _fair_share(counts_K: npt.NDArray[np.int64], most: int) -> int:
    wanted = min(most, int(counts_K.sum()))
    low, high = 0, wanted
    while low < high:
        middle = (low + high) // 2
        if int(np.minimum(counts_K, middle).sum()) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def gallery(
    index: SampleIndex, scores: pa.Table, verdicts: Verdicts, most: int
) -> list[dict[str, Any]]:
    """Returns the most suspicious samples with their images.

    Args:
        index: Where the images lie.
        scores: For the keys.
        verdicts: The scores as arrays.
        most: How many.

    Returns:
        Key, given and predicted class, p_clean, loss (nats), and `image`: a data URI with the size
        to show it at, or `problem` when it cannot be read any more.
    """
    rows = most_suspicious(verdicts, index.n_classes, most)
    keys = scores.column("key").take(pa.array(rows)).to_pylist()
    where = [index.numbers(name)[rows].tolist() for name in ("shard", "image_offset", "image_size")]
    files = ShardFiles([ref.path for ref in index.shards])
    shown = []
    for row, key, shard, offset, size in zip(rows.tolist(), keys, *where, strict=True):
        item = {
            "key": key,
            "given": index.classes[verdicts.label_N[row]],
            "predicted": index.classes[verdicts.pred_N[row]],
            "p_clean": float(verdicts.p_clean_N[row]),
            "loss": float(verdicts.loss_N[row]),
            "image": None,
            "problem": None,
        }
        try:
            item["image"] = thumbnail(files.read(shard, offset, size))
        except (ShardError, ValueError) as error:
            item["problem"] = str(error)
        shown.append(item)
    files.close()
    return shown


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
