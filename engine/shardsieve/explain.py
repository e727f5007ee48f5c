"""explain: why a sample was kept or went, and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import EXPLANATIONS, Reason
from shardsieve.data.record import StageRecord
from shardsieve.data.written import MANIFEST
from shardsieve.errors import DataError, StaleArtefact
from shardsieve.rundir import RunDir

_SIMILAR = 5


def explain(run: Path, key: str) -> list[dict[str, Any]]:
    """Says everything that decided on the samples of a key.

    Args:
        run: The run directory.
        key: As in the scores table.

    Returns:
        One JSON tree for each sample with this key, in row order.

    Raises:
        StaleArtefact: Nothing has been selected here.
        DataError: No sample has this key.
    """
    directory = RunDir(run)
    record = directory.record("select")
    if record is None:
        raise StaleArtefact(f"{run}: nothing has been selected here; run `clean` first")
    index = SampleIndex.open(directory.folder("index"))
    rows = np.flatnonzero(pc.equal(index.keys_N, key).to_numpy())
    if not len(rows):
        raise DataError(f"{run}: no sample has the key {key!r}{_similar(index, key)}")
    scores = pq.read_table(directory.folder("select") / "scores.parquet")
    classes = pq.read_table(directory.folder("select") / "classes.parquet").to_pylist()
    return [
        _explain_row(int(row), index, scores, classes, record, directory) for row in rows.tolist()
    ]


def _similar(index: SampleIndex, key: str) -> str:
    matches = pc.match_substring(index.keys_N, key.rpartition("/")[2])
    found = index.keys_N.filter(matches).slice(0, _SIMILAR).to_pylist()
    return f"; there are: {', '.join(found)}" if found and key else ""


def _explain_row(
    row: int,
    index: SampleIndex,
    scores: pa.Table,
    classes: list[dict[str, Any]],
    record: StageRecord,
    directory: RunDir,
) -> dict[str, Any]:
    scored = scores.slice(row, 1).to_pylist()[0]
    place = index.table.slice(row, 1).to_pylist()[0]
    label, reason = scored["label"], Reason[scored["reason"].upper()]
    told: dict[str, Any] = {
        "key": scored["key"],
        "row": row,
        "decision": reason.group,
        "reason": reason.word,
        "because": scored["detail"] or EXPLANATIONS[reason],
        "source": {
            "shard": str(index.shards[place["shard"]].path),
            **{name: place[name] for name in ("offset", "size", "image_offset", "image_size")},
        },
        "label": _named(label, index),
        "prediction": _named(scored["pred"], index),
    }
    known = (
        "key",
        "shard",
        "offset",
        "label",
        "pred",
        "kept",
        "reason",
        "detail",
        "duplicate_of",
        "near_duplicate_of",
        "leak_of",
        "leak_label",
    )
    told |= {name: value for name, value in scored.items() if name not in known}
    for name in ("duplicate_of", "near_duplicate_of"):
        if (first := scored[name]) is not None:
            other = scores.slice(first, 1).to_pylist()[0]
            told[name] = {"key": other["key"], "label": _named(other["label"], index)}
    if (held_out := scored["leak_of"]) is not None:
        told["leak_of"] = {"key": held_out, "label": _named(scored["leak_label"], index)}
    told["suggestion"] = _named(scored["suggested_label"], index)
    limit = record.facts.get("out_of_class", {}).get("above")
    told["may_be_of_no_class"] = limit is not None and (scored["out_of_class"] or 0) > limit
    if scored["p_clean"] is not None and label is not None:
        told["tau"] = record.identity["settings"].get("tau")
        told["in_its_class"] = _in_class(scored, scores, classes[label], record)
    told["written"] = _written(row, directory, record)
    return told


def _named(label: int | None, index: SampleIndex) -> dict[str, Any] | None:
    return None if label is None else {"label": label, "name": index.classes[label]}


def _in_class(
    scored: dict[str, Any], scores: pa.Table, about: dict[str, Any], record: StageRecord
) -> dict[str, Any]:
    """The class's mixture, and how the sample stands among the class's losses."""
    same = pc.equal(scores.column("label"), scored["label"])
    losses = scores.column("loss").filter(same).drop_null().to_numpy()
    told = dict(about)
    if about.get("rule") == "pooled":
        told["judged_by"] = record.facts.get("pooled_mixture")
    told["rank_by_loss"] = int(np.count_nonzero(losses > scored["loss"])) + 1
    told["judged"] = len(losses)
    return told


def _written(row: int, directory: RunDir, record: StageRecord) -> dict[str, Any] | None:
    """Where the sample was written; None when it was not, or write is out of date."""
    written = directory.record("write")
    table = directory.folder("write") / MANIFEST
    if written is None or written.identity["inputs"]["select"] != record.key:
        return None
    start = 0
    with pq.ParquetFile(table) as file:
        names = ["file", "file_offset", "reason"]
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < start + n_rows:
                found = file.read_row_group(group, columns=names).slice(row - start, 1)
                where: dict[str, Any] = found.to_pylist()[0]
                return where
            start += n_rows
    return None


def in_words(told: dict[str, Any]) -> str:
    """Returns lines for people."""
    source, label, pred = told["source"], told["label"], told["prediction"]
    lines = [
        f"{told['key']}: {told['decision']} ({told['reason']})",
        f"  why         {told['because']}",
    ]
    if label is not None:
        says = f"{label['name']!r}"
        if pred is not None:
            says += f"; the probe predicts {pred['name']!r}"
            says += f" (margin {told['margin']:+.3f})" if told.get("margin") is not None else ""
        lines.append(f"  label       {says}")
    if told["may_be_of_no_class"]:
        lines.append(
            f"  no class?   out_of_class {told['out_of_class']:.2f}: the image probably shows "
            "none of the classes, whatever label is suggested"
        )
    for name, words in (("duplicate_of", "same as "), ("near_duplicate_of", "nearly  ")):
        if (first := told.get(name)) is not None:
            named = first["label"]["name"] if first["label"] else None
            lines.append(f"  {words}    {first['key']}, an earlier sample labelled {named!r}")
    if (held_out := told.get("leak_of")) is not None:
        named = (
            f"labelled {held_out['label']['name']!r}" if held_out["label"] else "without a label"
        )
        lines.append(f"  held out    {held_out['key']} of the held-out shards is the same, {named}")
    about = told.get("in_its_class")
    if about is not None:
        verdict = ">" if told["p_clean"] > told["tau"] else "not above"
        lines += [
            f"  loss        {told['loss']:.4f} nats: number {about['rank_by_loss']:,} from the top "
            f"of the {about['judged']:,} of its class",
            f"  p_clean     {told['p_clean']:.4f}, {verdict} tau = {told['tau']:g}",
            *_unseen(told),
            f"  its class   {about['kept']:,} of {about['samples']:,} kept, judged by: "
            + _judged_by(about),
        ]
    lines.append(
        f"  lies in     {source['shard']} at byte {source['offset']:,} ({source['size']:,} bytes)"
    )
    written = told["written"]
    if written is not None and written["file"] is not None:
        lines.append(f"  written to  {written['file']} at byte {written['file_offset']:,}")
    elif written is not None and written["reason"] != told["reason"]:
        lines.append(f"  written to  none: {EXPLANATIONS[Reason[written['reason'].upper()]]}")
    return "\n".join(lines)


def _unseen(told: dict[str, Any]) -> list[str]:
    """What classifiers say that never saw the label, where the recipe asked any."""
    suggestion = told["suggestion"]
    if suggestion is None:
        return []
    near = told["neighbour_agreement"]
    share = "" if near is None else f"; {near:.0%} of its neighbours have its label"
    return [
        f"  suggested   {suggestion['name']!r} with {told['suggestion_confidence']:.1%}; "
        f"label unseen, its own has {told['agreement']:.1%}{share}"
    ]


def _judged_by(about: dict[str, Any]) -> str:
    rule, why = about.get("rule", "class"), about.get("why") or ""
    if rule == "class" and about.get("mean_clean") is not None:
        return "its own mixture: " + ", ".join(
            f"{name} {about[f'weight_{name}']:.1%} with mean {about[f'mean_{name}']:.4f} "
            f"and variance {about[f'variance_{name}']:.3g}"
            for name in ("clean", "noisy")
        )
    pooled = about.get("judged_by")
    words = {
        "pooled": "the mixture of all classes",
        "keep_all": "nothing, it is kept whole",
        "posterior": "the posterior under the estimated transition matrix",
    }
    told = words.get(rule, rule) + (f" ({why})" if why else "")
    return told + (f": {pooled}" if pooled else "")
