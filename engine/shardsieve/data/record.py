"""What a stage leaves behind beside its files, and what it is identified by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# Name of the file in the folder of a finished stage that says what it was made from.
RECORD = "stage.json"


class StageResult(BaseModel):
    """What a stage function returns.

    Attributes:
        counts: Whole numbers that say what happened.
        facts: Everything else worth keeping: resolved settings, scores, paths.
        notes: Sentences the user should read: fallbacks, damage, oddities.
        images: Images that were run through the backbone in this call, for the rate.
    """

    model_config = ConfigDict(extra="forbid")
    counts: dict[str, int] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    images: int = 0


class StageRecord(StageResult):
    """`stage.json`: a finished stage. Its presence, with the right key, means done.

    Attributes:
        stage: Name of the stage.
        key: Hash of everything the result depends on.
        identity: What was hashed, so that a difference can be named.
        seconds: Wall time of the call that finished it, seconds.
        device: Where the model ran, `cpu` for stages without one.
        backend: Which kernels ran.
        files: sha256 of each file by name, but those that carry or are listed with their own.
    """

    stage: str
    key: str
    identity: dict[str, Any]
    seconds: float
    device: str
    backend: str
    files: dict[str, str] = Field(default_factory=dict)


def content_key(identity: Mapping[str, Any]) -> str:
    """Returns the sha256 of a JSON tree, independent of the order of its keys."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what differs between two identities, such as `q: 0.7 -> 0.5`."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += [f"{name}.{change}" for change in changed_settings(old, new)]
        elif len(f"{old}{new}") < 120:
            changes.append(f"{name}: {old} -> {new}")
        else:
            changes.append(f"{name} changed")
    return changes
