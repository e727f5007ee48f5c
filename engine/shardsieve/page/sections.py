"""The parts of the page that are drawn: what the template needs for each.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.config import Config, SelectConfig
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.record import StageRecord
from shardsieve.page.feature_map import feature_map
from shardsieve.page.figures import (
    SUSPICION_COLOURS,
    draw_against_tau,
    draw_epochs,
    draw_histogram,
    draw_map,
)
from shardsieve.page.gallery import gallery
from shardsieve.page.histograms import loss_histograms
from shardsieve.page.noise import purity_by_tau
from shardsieve.page.queues import queues, spread
from shardsieve.page.verdicts import Verdicts
from shardsieve.selection.turn import mixture_losses


def histogram_grid(
    verdicts: Verdicts, classes: pa.Table, rows: list[dict[str, Any]], config: Config
) -> list[dict[str, Any]]:
    """Draws the losses of some classes.

    Args:
        verdicts: The scores.
        classes: A row per class, with the fitted mixtures.
        rows: The classes to draw, from `class_rows`.
        config: For the loss that the mixture saw.
    """
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


def shown_galleries(
    index: SampleIndex,
    scores: pa.Table,
    verdicts: Verdicts,
    suggested_N: npt.NDArray[np.int32],
    select: SelectConfig,
    tau: float,
    most: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the galleries and the samples in them, each once, with thumbnails."""
    found = queues(scores, verdicts, tau, select.out_of_class)
    shown = [
        replace(queue, rows_R=spread(queue.rows_R, verdicts.label_N[queue.rows_R], most))
        for queue in found
    ]
    items = gallery(index, scores, verdicts, shown, suggested_N)
    return [
        {
            "name": queue.name,
            "title": queue.title,
            "explanation": queue.explanation,
            "shown": len(cut.rows_R),
            "of": len(queue.rows_R),
        }
        for queue, cut in zip(found, shown, strict=True)
        if len(cut.rows_R)
    ], items


def placed_map(
    features: FeatureStore | None, verdicts: Verdicts, index: SampleIndex, config: Config
) -> dict[str, Any] | None:
    """Draws the feature map; None where there is none to draw."""
    if features is None or not config.report.map:
        return None
    placed = feature_map(
        features, verdicts, index.classes, most=config.report.map, seed=config.seed
    )
    if placed is None:
        return None
    return {
        "svg": draw_map(placed, "map"),
        "points": len(placed.suspicion_P),
        "of": placed.of,
        "colours": SUSPICION_COLOURS,
    }


def tau_curves(verdicts: Verdicts, record: StageRecord, tau: float) -> dict[str, Any]:
    """Returns what other thresholds would keep, as rows and as curves."""
    taus = sorted({*map(float, record.facts["kept_fraction_by_tau"]), tau})
    rows = purity_by_tau(verdicts, taus)
    if not rows or not verdicts.judged_N.any():
        return {"tau_rows": [], "tau_figures": []}
    figures = []
    curves = {
        "Kept": [(row.tau, row.kept) for row in rows],
        "Expected purity of what is kept": [
            (row.tau, row.purity) for row in rows if row.purity is not None
        ],
    }
    for number, (title, points) in enumerate(curves.items()):
        if len(points) > 1:
            (low, first), (high, last) = points[0], points[-1]
            figures.append(
                {
                    "title": title,
                    "svg": draw_against_tau(points, tau, f"tau-{number}"),
                    "words": f"Line: {title.lower()}, {100 * first:.1f} % at tau {low:g}, "
                    f"{100 * last:.1f} % at {high:g}",
                }
            )
    return {"tau_rows": rows, "tau_figures": figures}


def tuning_curves(record: StageRecord | None) -> dict[str, Any] | None:
    """Returns the epochs of fine-tuning, None when the run was not tuned."""
    if record is None:
        return None
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
