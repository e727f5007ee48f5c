"""What the review shows of the samples: pages of a gallery, single images.

Shapes: N samples, R rows of a gallery.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import load_config
from shardsieve.data.decisions import Decision, SampleName, locate_samples
from shardsieve.data.index import SampleIndex
from shardsieve.data.location import ShardPath
from shardsieve.errors import ShardError, StaleArtefact
from shardsieve.page.queues import Queue, queues, suggested_labels
from shardsieve.page.verdicts import Verdicts
from shardsieve.run import Run
from shardsieve.shards.files import open_shard
from shardsieve.shards.images import decode

# Formats that every browser shows; anything else is decoded and sent as JPEG.
_SHOWN_AS_THEY_ARE = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
}
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Filter:
    """Which samples of a gallery are asked for.

    Attributes:
        label: Only those that were given this class.
        reason: Only those with this reason, as a word.
        text: Only those whose key holds this.
    """

    label: int | None = None
    reason: str | None = None
    text: str = ""


class Samples:
    """A finished selection, as the review needs it: columns and row numbers, no images."""

    def __init__(self, run: Path) -> None:
        """Opens a run.

        Raises:
            StaleArtefact: Nothing has been selected there.
        """
        opened = Run(run)
        if not (run / "select" / "scores.parquet").is_file():
            raise StaleArtefact(f"{run}: nothing to review here; run `shardsieve clean` first")
        self.index: SampleIndex = opened.index
        self._scores = opened.scores
        self._verdicts = Verdicts.of(self._scores)
        self._suggested_N = suggested_labels(self._scores, self._verdicts)
        select = load_config(run / "config.toml").select
        everything = Queue(
            "all", "All", "Every sample, in the order of the shards.", np.arange(len(self.index))
        )
        made = [*queues(self._scores, self._verdicts, select.tau, select.out_of_class), everything]
        self.queues = {queue.name: queue for queue in made}
        self._names = [ref.path.name for ref in self.index.shards]
        self._reasons = self._scores.column("reason").cast(pa.string())

    def name_of(self, row: int) -> SampleName:
        """What a decision about this row is filed under."""
        return SampleName(
            self._names[int(self.index.numbers("shard")[row])],
            self.index.keys_N[row].as_py(),
            int(self.index.numbers("offset")[row]),
        )

    def given(self, row: int) -> str | None:
        """The name of the class a sample was labelled as."""
        label = int(self._verdicts.label_N[row])
        return self.index.classes[label] if label >= 0 else None

    @property
    def judged_N(self) -> npt.NDArray[np.bool_]:
        """(N,) samples about which there is something to decide."""
        return self._verdicts.judged_N

    @property
    def removed_N(self) -> npt.NDArray[np.bool_]:
        """(N,) samples that were judged and not kept."""
        return self._verdicts.removed_N

    def rows(
        self, gallery: str, wanted: Filter, decided: dict[SampleName, Decision]
    ) -> npt.NDArray[np.int64]:
        """Returns the rows of a gallery, in its order.

        Args:
            gallery: Name of a queue, or `decided`.
            wanted: Which of them.
            decided: The decisions that stand.

        Raises:
            KeyError: There is no such gallery.
        """
        if gallery == "decided":
            # The last decision first.
            located = locate_samples(decided, self.index)
            rows = np.array([*located.values()][::-1], np.int64)
        else:
            rows = self.queues[gallery].rows_R
        if wanted.label is not None:
            rows = rows[self._verdicts.label_N[rows] == wanted.label]
        if wanted.reason:
            chosen = self._reasons.take(pa.array(rows))
            rows = rows[pc.equal(chosen, wanted.reason).to_numpy().astype(bool)]
        if wanted.text:
            keys = self.index.keys_N.take(pa.array(rows))
            found = pc.match_substring(keys, wanted.text, ignore_case=True)
            rows = rows[found.to_numpy().astype(bool)]
        return rows

    def describe(
        self, rows: npt.NDArray[np.int64], decided: dict[SampleName, Decision]
    ) -> list[dict[str, Any]]:
        """Returns what the page shows of some samples, as JSON values."""
        taken = self._scores.take(pa.array(rows))
        columns = {
            name: taken.column(name).to_pylist()
            for name in ("key", "loss", "p_clean", "kept", "reason", "detail")
        }
        described = []
        for at, row in enumerate(rows.tolist()):
            item = {name: values[at] for name, values in columns.items()}
            suggested = int(self._suggested_N[row])
            has_image = int(self.index.numbers("image_size")[row]) > 0
            stands = decided.get(self.name_of(row))
            item |= {
                "row": row,
                "shard": self.name_of(row).shard,
                "given": self.given(row),
                "suggested": self.index.classes[suggested] if suggested >= 0 else None,
                "image": has_image,
                "judged": bool(self.judged_N[row]),
                "decision": stands.decision if stands else None,
                "label": stands.label if stands else None,
            }
            described.append(item)
        return described

    def reason_words(self) -> list[str]:
        """The reasons that occur."""
        return sorted(str(word) for word in pc.unique(self._reasons).to_pylist())

    def image(self, row: int) -> tuple[str, int, Iterator[bytes]]:
        """Returns media type, size in bytes, and the bytes of an image piece by piece.

        Raises:
            ShardError: The shard is gone or shorter than it was.
            ValueError: There is no image, or one that cannot be decoded.
        """
        start, size = (int(self.index.numbers(f"image_{what}")[row]) for what in ("offset", "size"))
        if size <= 0:
            raise ValueError("the sample has no image")
        path = self.index.shards[int(self.index.numbers("shard")[row])].path
        head = next(_pieces(path, start, min(size, 12)))
        for magic, media_type in _SHOWN_AS_THEY_ARE.items():
            if head.startswith(magic):
                return media_type, size, _pieces(path, start, size)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "image/webp", size, _pieces(path, start, size)
        packed = io.BytesIO()
        decode(b"".join(_pieces(path, start, size))).save(packed, "JPEG", quality=90)
        return "image/jpeg", packed.tell(), iter([packed.getvalue()])


def _pieces(path: ShardPath, start: int, size: int) -> Iterator[bytes]:
    """Yields a byte range of a shard; each caller has a file of its own, so threads may share."""
    try:
        with os.fdopen(open_shard(path), "rb") as file:
            file.seek(start)
            while size > 0:
                piece = file.read(min(size, _PIECE_BYTES))
                if not piece:
                    raise ShardError(f"{path}: shorter than when it was indexed; run again")
                size -= len(piece)
                yield piece
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}. It was there when it was indexed") from error


def queue_json(queue: Queue) -> dict[str, Any]:
    """Returns what the page shows of a gallery as a whole."""
    return {
        "name": queue.name,
        "title": queue.title,
        "explanation": queue.explanation,
        "count": len(queue.rows_R),
    }
