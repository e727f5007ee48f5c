"""report: everything a run has found out -> one page to look at.

Shapes: N samples.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.config import Config
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.manifest import describe_machine, library_versions
from shardsieve.data.record import StageRecord, StageResult
from shardsieve.data.table import write_text
from shardsieve.page.histograms import RANGE_PERCENTILE
from shardsieve.page.noise import class_noise, label_matrix, noise_summary, transition_matrix
from shardsieve.page.queues import suggested_labels
from shardsieve.page.verdicts import (
    Verdicts,
    class_rows,
    count_groups,
    list_unreadable,
    predicted_pairs,
)

_LISTED_CLASSES = 50
_LISTED_PAIRS = 15
_LISTED_SHARDS = 100
_JUDGED_BY = {
    "class": "its own mixture",
    "pooled": "the mixture of all classes",
    "keep_all": "no mixture: kept whole",
    "posterior": "the noise model",
}
_SECTIONS = {
    "overview": "Overview",
    "accounts": "In and out",
    "classes": "Classes",
    "losses": "Losses",
    "map": "Map",
    "gallery": "Images",
    "tau": "Tau",
    "tuning": "Fine-tuning",
    "time": "Time",
    "unreadable": "Unreadable",
    "reproduce": "Reproduce",
}


def report(
    index: SampleIndex,
    scores: pa.Table,
    classes: pa.Table,
    records: dict[str, StageRecord],
    config: Config,
    *,
    features: FeatureStore | None = None,
    transition_KK: npt.NDArray[np.float64] | None = None,
    clean: Path,
    out: Path,
) -> StageResult:
    """Writes the page: one HTML file that loads nothing.

    Args:
        index: The samples; the images of the gallery are read from their shards.
        scores: A row per sample.
        classes: A row per class.
        records: The stages that are up to date: index, embed, probe, select, write, maybe tune.
        config: All settings.
        features: For the feature map; None leaves it out.
        transition_KK: (K, K) P(given | true) where the recipe estimated one.
        clean: Folder of the shards that were written.
        out: Folder that gets `report.html`.

    Returns:
        How many samples are shown, suspicious and in all, and the size of the page in bytes.
    """
    # Drawing libraries are slow to load, and whoever imports the pipeline may never draw.
    from shardsieve.page import sections
    from shardsieve.page.render import render

    verdicts = Verdicts.of(scores)
    suggested_N = suggested_labels(scores, verdicts)
    groups = count_groups(scores)
    totals = {name: sum(row["count"] for row in rows) for name, rows in groups.items()}
    totals["samples"] = len(index)
    noise_K3 = class_noise(verdicts, index.n_classes)
    rows = class_rows(verdicts, classes, _JUDGED_BY, noise_K3)
    chosen = records["select"].facts
    # A recipe may have chosen tau itself.
    tau = float(chosen.get("tau", config.select.tau))
    galleries, items = sections.shown_galleries(
        index, scores, verdicts, suggested_N, config.select, tau, config.report.gallery
    )
    page = render(
        {
            "sections": [
                (anchor, title)
                for anchor, title in _SECTIONS.items()
                if anchor != "tuning" or "tune" in records
            ],
            "totals": totals,
            "groups": groups,
            "about": _about(index, records, config),
            "written": _written(index, records["write"], clean, config),
            "near_tau": chosen.get("within_1e-4_of_tau"),
            "noise": _noise(verdicts, chosen),
            "decided": chosen.get("decisions", {}),
            **_damage_and_notes(index, records),
            "percentile": RANGE_PERCENTILE,
            "histograms": sections.histogram_grid(
                verdicts, classes, rows[: config.report.classes], config
            ),
            "class_count": len(rows),
            "class_rows": rows[:_LISTED_CLASSES],
            "pairs": predicted_pairs(verdicts, index.classes, _LISTED_PAIRS),
            "matrix": label_matrix(verdicts, suggested_N, index.classes),
            "transition": None
            if transition_KK is None
            else transition_matrix(transition_KK, index.classes),
            "map": sections.placed_map(features, verdicts, index, config),
            "galleries": galleries,
            "gallery": items,
            **sections.tau_curves(verdicts, records["select"], tau),
            "tuning": sections.tuning_curves(records.get("tune")),
            "stages": _stages(records),
            "unreadable": list_unreadable(scores, index),
            "versions": library_versions(),
            "settings": _settings(config),
            "listed_shards": _LISTED_SHARDS,
        }
    )
    write_text(out / "report.html", page)
    return StageResult(
        counts={
            "suspicious_shown": sum("suspicious" in item["galleries"] for item in items),
            "samples_shown": len(items),
            "size_bytes": len(page.encode("utf-8")),
        }
    )


def _noise(verdicts: Verdicts, chosen: dict[str, Any]) -> dict[str, float] | None:
    """Returns the recipe's own estimate where it has one, else what the posteriors add up to."""
    summary, known = noise_summary(verdicts), chosen.get("noise_rate")
    if summary is None or known is None:
        return summary
    return summary | {"rate": known["estimate"], "low": known["low"], "high": known["high"]}


def _about(index: SampleIndex, records: dict[str, StageRecord], config: Config) -> dict[str, Any]:
    probe, chosen = config.probe, config.select
    loss = f"GCE (q = {probe.q:g})" if probe.loss == "gce" else "cross entropy"
    trained = {
        "minibatch": f"{loss}, {probe.epochs} epochs",
        "mm": f"{loss}, minimised in at most {probe.epochs} rounds",
        "ridge": "least squares in closed form",
    }[probe.solver]
    scored = f", each scored by one of {probe.folds} that never saw it" if probe.folds else ""
    seen = "GCE" if chosen.loss == "gce" else "cross entropy"
    facts = records["embed"].facts
    side = facts["preprocessing"]["size"]
    weights = facts["weights"]
    return {
        "tool": version("shardsieve"),
        "shards": len(index.shards),
        "first_shard": str(index.shards[0].path),
        "size_bytes": sum(ref.size_bytes for ref in index.shards),
        "classes": index.n_classes,
        "backbone": f"{facts['backbone']}, images of {side} x {side} pixels, {facts['precision']}",
        "weights": ", ".join(f"{name} {value}" for name, value in weights.items()),
        "recipe": f"{chosen.recipe}: linear probe with {trained}{scored}; "
        + (
            f"posterior under an estimated transition matrix, {chosen.folds} folds"
            if chosen.recipe == "best"
            else f"two-component mixture of {seen} losses per class ({chosen.gmm})"
        ),
        "tau": f"{chosen.tau:g}",
        "seed": config.seed,
        "machine": describe_machine(),
        "backend": records["select"].backend,
    }


def _written(
    index: SampleIndex, record: StageRecord, clean: Path, config: Config
) -> list[dict[str, Any]]:
    folders = {"clean": clean.resolve(), "removed": config.write.removed}
    written = []
    for name in [name for name in folders if name in record.facts]:
        shards = record.facts[name]
        number = f"{{000000..{len(shards) - 1:06d}}}" if len(shards) > 1 else "000000"
        written.append(
            {
                "name": name,
                "pattern": f"{folders[name]}/{name}-{number}.tar",
                "samples": sum(shard["samples"] for shard in shards),
                "size_bytes": sum(shard["size_bytes"] for shard in shards),
                "shards": [
                    {**shard, "source": _source_name(index, shard["source"])} for shard in shards
                ],
            }
        )
    return written


def _source_name(index: SampleIndex, source: int | None) -> str:
    return "several" if source is None else index.shards[source].path.name


def _damage_and_notes(index: SampleIndex, records: dict[str, StageRecord]) -> dict[str, Any]:
    damage = [{"path": str(ref.path), "what": what} for ref in index.shards for what in ref.damage]
    # The index notes the damage too; here it stands apart, with the whole path.
    known = {f"{ref.path.name}: {what}" for ref in index.shards for what in ref.damage}
    notes = [
        {"stage": name, "text": note}
        for name, record in records.items()
        for note in record.notes
        if name != "index" or note not in known
    ]
    return {"damage": damage, "notes": notes}


def _stages(records: dict[str, StageRecord]) -> dict[str, Any]:
    slowest = max(records.values(), key=lambda record: record.seconds)
    total = sum(record.seconds for record in records.values())
    rows = [
        {
            "stage": name,
            "seconds": record.seconds,
            "share": record.seconds / slowest.seconds if slowest.seconds else 0.0,
            "images": record.images,
            "rate": record.images / record.seconds if record.images and record.seconds else None,
            "device": record.device,
            "key": record.key,
        }
        for name, record in records.items()
    ]
    embedding = records["embed"].facts.get("time", {})
    return {
        # Nothing to tell where every shard was known already.
        "embedding": embedding if "of_model_speed" in embedding else None,
        "rows": rows,
        "slowest": slowest.stage,
        "slowest_share": slowest.seconds / total if total else 0.0,
        "total": total,
    }


def _settings(config: Config) -> str:
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
