"""report: everything a run has found out -> one page to look at.

Shapes: N samples.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from shardsieve.config import Config
from shardsieve.data.index import SampleIndex
from shardsieve.data.manifest import describe_machine, library_versions
from shardsieve.data.record import StageRecord, StageResult
from shardsieve.data.table import write_text
from shardsieve.page.histograms import RANGE_PERCENTILE, loss_histograms
from shardsieve.page.verdicts import (
    Verdicts,
    class_rows,
    count_groups,
    list_unreadable,
    predicted_pairs,
)
from shardsieve.selection.turn import mixture_losses

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
    "losses": "Losses",
    "classes": "Classes",
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
        clean: Folder of the shards that were written.
        out: Folder that gets `report.html`.

    Returns:
        How many suspicious images are shown, and the size of the page in bytes.
    """
    # Drawing libraries are slow to load, and whoever imports the pipeline may never draw.
    from shardsieve.page.gallery import gallery
    from shardsieve.page.render import render

    verdicts = Verdicts.of(scores)
    groups = count_groups(scores)
    totals = {name: sum(row["count"] for row in rows) for name, rows in groups.items()}
    totals["samples"] = len(index)
    rows = class_rows(verdicts, classes, _JUDGED_BY)
    shown = gallery(index, scores, verdicts, config.report.gallery)
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
            "near_tau": records["select"].facts.get("within_1e-4_of_tau"),
            **_damage_and_notes(index, records),
            "percentile": RANGE_PERCENTILE,
            "histograms": _histograms(verdicts, classes, rows[: config.report.classes], config),
            "class_count": len(rows),
            "class_rows": rows[:_LISTED_CLASSES],
            "pairs": predicted_pairs(verdicts, index.classes, _LISTED_PAIRS),
            "gallery": shown,
            **_by_tau(records["select"], config),
            "tuning": _tuning(records.get("tune")),
            "stages": _stages(records),
            "unreadable": list_unreadable(scores, index),
            "versions": library_versions(),
            "settings": _settings(config),
            "listed_shards": _LISTED_SHARDS,
        }
    )
    write_text(out / "report.html", page)
    return StageResult(
        counts={"suspicious_shown": len(shown), "size_bytes": len(page.encode("utf-8"))}
    )


def _about(index: SampleIndex, records: dict[str, StageRecord], config: Config) -> dict[str, Any]:
    probe, chosen = config.probe, config.select
    loss = f"GCE (q = {probe.q:g})" if probe.loss == "gce" else "cross entropy"
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
        "recipe": f"{chosen.recipe}: linear probe with {loss}, {probe.epochs} epochs{scored}; "
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
    for name, shards in record.facts.items():
        number = f"{{000000..{len(shards) - 1:06d}}}" if len(shards) > 1 else "000000"
        written.append(
            {
                "name": name,
                "pattern": f"{folders[name]}/{name}-{number}.tar",
                "samples": sum(shard["samples"] for shard in shards),
                "size_bytes": sum(shard["size_bytes"] for shard in shards),
                "shards": [
                    {**shard, "source": index.shards[shard["source"]].path.name} for shard in shards
                ],
            }
        )
    return written


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


def _histograms(
    verdicts: Verdicts, classes: pa.Table, rows: list[dict[str, Any]], config: Config
) -> list[dict[str, Any]]:
    from shardsieve.page.figures import draw_histogram

    losses_N = mixture_losses(verdicts.loss_N, config.select.loss, config.probe.q)
    unit = "cross entropy (nats)" if config.select.loss == "ce" else "GCE loss"
    histograms = loss_histograms(verdicts, losses_N, classes, [row["label"] for row in rows])
    drawn = []
    for row, histogram in zip(rows, histograms, strict=True):
        where = " and ".join(f"{crossing:.2f}" for crossing in histogram.crossings)
        drawn.append(
            {
                **row,
                "svg": draw_histogram(histogram, unit, f"h{row['label']}"),
                "beyond": histogram.beyond,
                "words": f"Histogram of the losses of class {row['name']}; "
                + (f"p_clean crosses tau at {where}" if where else "p_clean never crosses tau"),
            }
        )
    return drawn


def _by_tau(record: StageRecord, config: Config) -> dict[str, Any]:
    from shardsieve.page.figures import draw_kept_by_tau

    # Without a judged sample there is no fraction: NaN, which JSON turns into null.
    points = [
        (float(tau), float(kept))
        for tau, kept in record.facts["kept_fraction_by_tau"].items()
        if kept is not None and kept == kept
    ]
    if not points:
        return {"tau_points": [], "tau_figure": "", "tau_words": ""}
    (low, most), (high, least) = points[0], points[-1]
    return {
        "tau_points": points,
        "tau_figure": draw_kept_by_tau(points, config.select.tau, "tau"),
        "tau_words": f"{100 * most:.1f} % are kept at tau {low:g}, {100 * least:.1f} % at {high:g}",
    }


def _tuning(record: StageRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    from shardsieve.page.figures import draw_epochs

    metrics = record.facts["metrics"]
    validated = all("validation_accuracy" in row for row in metrics)
    columns = {"training_loss": "Training loss (nats)", "kept": "Clean samples"}
    if validated:
        columns["validation_accuracy"] = "Validation accuracy"
    # One epoch is a number, not a line.
    figures = [
        {
            "title": title,
            "svg": draw_epochs(
                metrics, column, f"tune-{column}", share=column == "validation_accuracy"
            ),
            "words": f"Line: {title.lower()} by epoch, from {metrics[0][column]:.4g} "
            f"to {metrics[-1][column]:.4g}",
        }
        for column, title in columns.items()
        if len(metrics) > 1
    ]
    return {"metrics": metrics, "validated": validated, "figures": figures}


def _stages(records: dict[str, StageRecord]) -> dict[str, Any]:
    slowest = max(records.values(), key=lambda record: record.seconds)
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
    total = sum(record.seconds for record in records.values())
    return {"rows": rows, "slowest": slowest.stage, "total": total}


def _settings(config: Config) -> str:
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
