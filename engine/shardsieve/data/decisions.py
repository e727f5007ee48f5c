"""What people decided about samples: read from `decisions.jsonl`, applied by `select`.

The file is the record: one JSON object a line, appended and never changed. Of the lines about one
sample the last one counts. It lies beside the results of the stages and outlives them.

Shapes: N samples, D decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import content_key
from shardsieve.errors import DataError

FILE = "decisions.jsonl"


class SampleName(NamedTuple):
    """What a decision is about, whatever becomes of row numbers.

    Attributes:
        shard: File name of its input shard; empty: any shard, if the key is there once.
        key: Key of the sample.
        offset: First byte in the shard; tells samples apart that share a key. None: unknown.
    """

    shard: str
    key: str
    offset: int | None


class Decision(BaseModel):
    """One line of `decisions.jsonl`.

    Attributes:
        shard: File name of the input shard, empty where only the key is known.
        key: Key of the sample.
        offset: First byte of the sample in its shard, None where it is not known.
        decision: `keep` (the label is right), `drop` (leave the sample out), `relabel` (keep it
            under another class), or `none` (what was decided before is taken back).
        label: Name of the new class, for `relabel`.
        given: Name of the class it was labelled as when this was decided.
        time: When, ISO 8601 in UTC.
        takes_back: Whether this line came from undo, so that another undo goes further back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    shard: str = ""
    key: str
    offset: int | None = None
    decision: Literal["keep", "drop", "relabel", "none"]
    label: str | None = None
    given: str | None = None
    time: str = ""
    takes_back: bool = False

    @model_validator(mode="after")
    def _label_only_with_relabel(self) -> Decision:
        if (self.decision == "relabel") != bool(self.label):
            raise ValueError("`relabel` needs a label, and nothing else takes one")
        return self

    @property
    def sample(self) -> SampleName:
        """What it is about."""
        return SampleName(self.shard, self.key, self.offset)


@dataclass(frozen=True, slots=True)
class ReviewDecisions:
    """The decisions that stand.

    Attributes:
        history: Every whole line, oldest first.
        torn: Bytes of a last line that was cut off while it was written.
    """

    history: tuple[Decision, ...] = ()
    torn: int = 0

    @property
    def standing(self) -> dict[SampleName, Decision]:
        """The last decision about each sample, oldest first, without those taken back."""
        last: dict[SampleName, Decision] = {}
        for one in self.history:
            last.pop(one.sample, None)
            last[one.sample] = one
        return {sample: one for sample, one in last.items() if one.decision != "none"}

    @property
    def key(self) -> str | None:
        """Hash of what stands, None when nothing does: part of what identifies `select`.

        When, in which order and after how many changes it was decided makes no difference.
        """
        rows = [
            [one.shard, one.key, one.offset, one.decision, one.label, one.given]
            for one in self.standing.values()
        ]
        return content_key({"decisions": sorted(rows, key=str)}) if rows else None


NOTHING_DECIDED = ReviewDecisions()


def read_decisions(run: Path) -> ReviewDecisions:
    """Reads the decisions of a run; none when nobody has decided anything.

    A last line that was cut off is left out: whoever wrote it was never told that it was saved.

    Raises:
        DataError: A line that is not the last one cannot be read.
    """
    file = run / FILE
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return NOTHING_DECIDED
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return parse_decisions(data, file)


def parse_decisions(data: bytes, file: Path) -> ReviewDecisions:
    """Reads the content of a file of decisions.

    Args:
        data: What it holds.
        file: Its name, for messages.

    Raises:
        DataError: A line that is not the last one cannot be read.
    """
    lines = data.split(b"\n")
    tail = lines.pop()
    history: list[Decision] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            history.append(Decision.model_validate_json(line))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise DataError(
                f"{file}, line {number}: not a decision ({what}). "
                "Mend or delete that line; all others are kept"
            ) from error
    return ReviewDecisions(tuple(history), len(tail))


@dataclass(slots=True)
class Reviewed:
    """What decisions did to the samples of a run.

    Attributes:
        final_label_N: (N,) i32 label after review, -1 where there is none.
        applied: Decisions that were followed, by what was decided.
        notes: A sentence for each kind that was not.
    """

    final_label_N: npt.NDArray[np.int32]
    applied: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def apply_decisions(
    decisions: ReviewDecisions, index: SampleIndex, reason_N: npt.NDArray[np.uint8]
) -> Reviewed:
    """Lets people have the last word: changes `reason_N` in place.

    A sample that cannot be read stays unreadable. `keep` and `drop` are about a label: once the
    sample has another one, they no longer apply.

    Args:
        decisions: What was decided.
        index: The samples.
        reason_N: (N,) u8 `Reason` as the recipe sees it.
    """
    reviewed = Reviewed(index.label_N.astype(np.int32, copy=True))
    numbers = {name: number for number, name in enumerate(index.classes)}
    standing = decisions.standing
    located = locate_samples(standing, index)
    skipped = {"absent": len(standing) - len(located)}
    skipped |= {"about another label": 0, "unknown class": 0, "unreadable": 0}
    # Two names may mean one sample: the later decision counts.
    for row, one in {row: standing[sample] for sample, row in located.items()}.items():
        given = index.classes[index.label_N[row]] if index.label_N[row] >= 0 else None
        label = numbers.get(one.label) if one.label is not None else None
        if Reason(reason_N[row]).group == "unreadable":
            skipped["unreadable"] += 1
        elif one.decision == "relabel" and label is None:
            skipped["unknown class"] += 1
        elif one.decision != "relabel" and one.given not in (None, given):
            skipped["about another label"] += 1
        else:
            dropped = one.decision == "drop"
            reason_N[row] = Reason.REMOVED_BY_REVIEW if dropped else Reason.KEPT_BY_REVIEW
            if label is not None:
                reviewed.final_label_N[row] = label
            reviewed.applied[one.decision] = reviewed.applied.get(one.decision, 0) + 1
    reviewed.notes = _explain_skipped(skipped, decisions.torn)
    return reviewed


def _explain_skipped(skipped: dict[str, int], torn: int) -> list[str]:
    why = {
        "absent": "name a sample that is not here, or more than one",
        "about another label": "are about another label than the sample has now",
        "unknown class": "give a label that is none of the classes",
        "unreadable": "are about samples that cannot be read",
    }
    notes = [
        f"{count} decision{'s' if count > 1 else ''} of {FILE} not followed: they {why[kind]}"
        for kind, count in skipped.items()
        if count
    ]
    if torn:
        notes.append(f"the last line of {FILE} was cut off while it was written and is left out")
    return notes


def locate_samples(samples: Iterable[SampleName], index: SampleIndex) -> dict[SampleName, int]:
    """Finds the rows of samples; those that are not there, or not clearly, are left out.

    Args:
        samples: What to look for.
        index: Where to look; only rows whose key is asked for become Python objects.
    """
    wanted = list(samples)
    if not wanted:
        return {}
    keys = pa.array(sorted({sample.key for sample in wanted}), pa.string())
    rows = np.flatnonzero(pc.is_in(index.keys_N, value_set=keys).to_numpy())
    names = [ref.path.name for ref in index.shards]
    found: dict[str, list[tuple[int, str, int]]] = {}
    for row, key, shard, offset in zip(
        rows.tolist(),
        index.keys_N.take(pa.array(rows)).to_pylist(),
        index.numbers("shard")[rows].tolist(),
        index.numbers("offset")[rows].tolist(),
        strict=True,
    ):
        found.setdefault(key, []).append((row, names[shard], offset))
    located: dict[SampleName, int] = {}
    for sample in wanted:
        here = [
            (row, offset)
            for row, shard, offset in found.get(sample.key, [])
            if sample.shard in ("", shard)
        ]
        # A shard that was packed anew holds the sample elsewhere: then its key must be enough.
        exact = [row for row, offset in here if offset == sample.offset]
        rows_here = exact if len(exact) == 1 else [row for row, _ in here]
        if len(rows_here) == 1:
            located[sample] = rows_here[0]
    return located
