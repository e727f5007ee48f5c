"""What the docs name (`train-*.tar`, `classes.txt`, `features` ...), small, to try them on."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import COLOURS, add_member, jpeg

CLASSES = ("red", "green", "blue")
# The docs number a thousand shards.
SMALLER = {"{0000..0999}": "{0000..0003}"}


def smaller(text: str) -> str:
    """Returns a block with fewer shards."""
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    return text


def write_stand_ins(folder: Path) -> None:
    """Writes shards, and tables, with some labels wrong."""
    rng = np.random.default_rng(0)
    _shards(folder, rng)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def _shards(folder: Path, rng: np.random.Generator) -> None:
    keys, labels = [], []
    for shard in range(4):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
            for position in range(20):
                key, label = f"s{shard}-{position:03d}", int(rng.integers(3))
                told = (label + 1) % 3 if rng.random() < 0.2 else label
                add_member(tar, f"{key}.jpg", jpeg(COLOURS[label], rng))
                add_member(tar, f"{key}.cls", str(told).encode())
                add_member(tar, f"{key}.json", json.dumps({"label": told}).encode())
                keys.append(key)
                labels.append(told)
    pq.write_table(pa.table({"key": keys, "label": labels}), folder / "labels.parquet")


def names() -> dict[str, Any]:
    """What Python blocks take as given: a user's own arrays."""
    from sklearn.datasets import make_blobs

    features, labels = make_blobs(120, n_features=8, centers=3, random_state=0)
    probs = np.eye(3)[labels] * 0.7 + 0.1
    return {"__name__": "__main__", "features": features, "labels": labels, "probs": probs}
