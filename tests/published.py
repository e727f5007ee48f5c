"""Miniatures of published data sets, and what their shards must hold."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass

import numpy as np
import pyarrow.csv
from PIL import Image


def image_bytes(seed: int, format: str = "JPEG", size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


@dataclass(frozen=True)
class Imported:
    """What an import wrote: per source the image's bytes, its label and its JSON."""

    outcome: object
    images: dict[str, bytes]
    labels: dict[str, int]
    metadata: dict[str, dict]
    keys: list[str]
    classes: list[str]
    problems: dict[str, tuple[str, str]]


def read_back(outcome) -> Imported:
    images, labels, metadata, keys = {}, {}, {}, []
    for shard in outcome.shards:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        for key, parts in samples.items():
            more = json.loads(parts.pop("json"))
            source = more["source"]
            labels[source] = int(parts.pop("cls"))
            (images[source],) = parts.values()
            metadata[source] = more
            keys.append(key)
    problems = {}
    for row in pyarrow.csv.read_csv(outcome.out / "problems.csv").to_pylist():
        problems[row["source"]] = (row["reason"], row["detail"])
    classes = (outcome.out / "classes.txt").read_text().splitlines()
    return Imported(outcome, images, labels, metadata, keys, classes, problems)
