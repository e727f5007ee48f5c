"""The manifest: what came in, what came out, and everything that made the difference."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shardsieve.data.index import SampleIndex
from shardsieve.data.record import StageRecord

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pyarrow", "numba", "pillow", "webdataset")


class Counts(BaseModel):
    """in = kept + removed + unreadable.

    Attributes:
        samples_in: Samples in the input shards.
        kept: Samples in the clean shards.
        removed: Samples judged to be mislabelled, or clean and over a quota, by reason.
        unreadable: Samples that could not be judged, by reason.
    """

    samples_in: int
    kept: int
    removed: dict[str, int]
    unreadable: dict[str, int]

    @property
    def reconciles(self) -> bool:
        """Whether every sample is accounted for exactly once."""
        out = self.kept + sum(self.removed.values()) + sum(self.unreadable.values())
        return out == self.samples_in


class Manifest(BaseModel):
    """`manifest.json`, complete after `write` and useful before.

    Attributes:
        schema_version: Raised when a field changes its meaning.
        tool: Version of shardsieve.
        libraries: Versions of what computed the numbers.
        machine: Where it ran.
        config: All settings, defaults included.
        inputs: The shards that were read: path, size, samples, damage.
        classes: Class names by label.
        counts: How the samples add up, once they have been selected.
        unreadable_samples: Key, shard, reason and detail of each (the first 10,000; all are in
            `select/scores.parquet`).
        outputs: The shards that were written, with their sha256.
        stages: What each stage did: identity, seconds, counts, facts.
        notes: Every fallback and oddity, stage by stage.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    tool: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    config: dict[str, Any]
    inputs: list[dict[str, Any]]
    classes: list[str]
    counts: Counts | None
    unreadable_samples: list[dict[str, Any]]
    outputs: dict[str, list[dict[str, Any]]]
    stages: dict[str, StageRecord]
    notes: list[str]


def build_manifest(
    index: SampleIndex,
    config: dict[str, Any],
    records: dict[str, StageRecord],
    unreadable: list[dict[str, Any]],
) -> Manifest:
    """Puts the manifest together from the records of the stages that are up to date."""
    written = records.get("write")
    facts = written.facts if written else {}
    outputs = {name: facts[name] for name in ("clean", "removed") if name in facts}
    return Manifest(
        tool=version("shardsieve"),
        libraries=library_versions(),
        machine=describe_machine(),
        config=config,
        inputs=[ref.to_json() for ref in index.shards],
        classes=list(index.classes),
        counts=_counts(records),
        unreadable_samples=unreadable,
        outputs=outputs,
        stages=records,
        notes=[f"{name}: {note}" for name, record in records.items() for note in record.notes],
    )


def describe_machine() -> dict[str, str | int]:
    """Returns processor, cores and system of this machine."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            model = next((x.split(":")[1].strip() for x in lines if "model name" in x), model)
    except OSError:
        pass  # Not Linux: platform's answer stands.
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def library_versions() -> dict[str, str]:
    """Returns the versions of what computed the numbers, as far as it is installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _counts(records: dict[str, StageRecord]) -> Counts | None:
    selected = records.get("select")
    if selected is None:
        return None
    from shardsieve.data.reason import Reason

    groups: dict[str, dict[str, int]] = {"kept": {}, "removed": {}, "unreadable": {}}
    for word, count in selected.facts["by_reason"].items():
        groups[Reason[word.upper()].group][word] = count
    kept = sum(groups["kept"].values())
    written = records.get("write")
    if written is not None and (over := written.counts.get("over_quota", 0)):
        kept -= over
        groups["removed"][Reason.OVER_QUOTA.word] = over
    return Counts(
        samples_in=selected.counts["samples"],
        kept=kept,
        removed=groups["removed"],
        unreadable=groups["unreadable"],
    )
