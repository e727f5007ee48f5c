"""The losses of a class with the mixture that judged them.

Shapes: N samples, J judged samples of one class, B bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.page.verdicts import Verdicts

RANGE_PERCENTILE = 99.5
_CURVE_POINTS = 120


@dataclass(frozen=True, slots=True)
class LossHistogram:
    """One class.

    Attributes:
        edges: (B + 1,) bin edges, unit of the losses.
        kept_B: (B,) kept samples.
        removed_B: (B,) removed samples.
        beyond: Samples with a loss beyond the last edge.
        crossings: Losses at which the verdict changes, halfway between the two samples around it.
        curves: Where the class's own mixture judged it, (P,) losses and the samples per bin that
            the clean and the noisy component expect there; else None.
    """

    edges: npt.NDArray[np.float64]
    kept_B: npt.NDArray[np.int64]
    removed_B: npt.NDArray[np.int64]
    beyond: int
    crossings: tuple[float, ...]
    curves: tuple[npt.NDArray[np.float64], ...] | None


def loss_histograms(
    verdicts: Verdicts,
    losses_N: npt.NDArray[np.float32],
    classes: pa.Table,
    labels: Sequence[int],
) -> Iterator[LossHistogram]:
    """Makes the histograms of some classes, one after the other.

    Args:
        verdicts: The scores.
        losses_N: (N,) losses as the mixture saw them.
        classes: The table of the stage `select`.
        labels: Which classes.
    """
    judged = np.flatnonzero(verdicts.judged_N)
    grouped = judged[np.argsort(verdicts.label_N[judged], kind="stable")]
    sorted_labels = verdicts.label_N[grouped]
    for label in labels:
        start, stop = np.searchsorted(sorted_labels, [label, label + 1])
        rows = grouped[start:stop]
        row = classes.slice(label, 1).to_pylist()[0]
        mixture = row if row["rule"] == "class" else None
        yield loss_histogram(losses_N[rows], verdicts.kept_N[rows], mixture)


def loss_histogram(
    losses_J: npt.NDArray[np.float32],
    kept_J: npt.NDArray[np.bool_],
    mixture: dict[str, Any] | None,
) -> LossHistogram:
    """Counts the losses of one class in bins.

    The bins end at a high percentile, as a few samples may lie far out, but never before the
    verdict has changed.

    Args:
        losses_J: (J,) losses of the class, J > 0.
        kept_J: (J,) which of them are kept.
        mixture: Row of the class table if its own mixture judged it.
    """
    values_J = losses_J.astype(np.float64)
    crossings = verdict_changes(values_J, kept_J)
    low = min(0.0, float(values_J.min()))
    # Of a small class all is shown: its percentile is its largest loss.
    percentile = float(np.percentile(values_J, RANGE_PERCENTILE, method="higher"))
    high = max(percentile, *(1.1 * crossing for crossing in crossings), low)
    if high <= low:
        high = low + 1.0
    edges = np.linspace(low, high, (40 if len(values_J) >= 100 else 20) + 1)
    curves = None
    if mixture is not None:
        curves = _curves(mixture, edges, len(values_J))
    return LossHistogram(
        edges,
        np.histogram(values_J[kept_J], edges)[0],
        np.histogram(values_J[~kept_J], edges)[0],
        int(np.count_nonzero(values_J > high)),
        crossings,
        curves,
    )


def verdict_changes(
    values_J: npt.NDArray[np.float64], kept_J: npt.NDArray[np.bool_]
) -> tuple[float, ...]:
    """Returns the losses at which kept turns into removed, or back.

    One for a posterior that falls with the loss, at most two for any mixture of two Gaussians.
    """
    order = np.argsort(values_J, kind="stable")
    values, kept = values_J[order], kept_J[order]
    at = np.flatnonzero(kept[1:] != kept[:-1])[:2]
    return tuple(((values[at] + values[at + 1]) / 2).tolist())


def _curves(
    mixture: dict[str, Any], edges: npt.NDArray[np.float64], n_samples: int
) -> tuple[npt.NDArray[np.float64], ...] | None:
    parts = ("clean", "noisy")
    numbers = [
        mixture[f"{what}_{part}"] for what in ("weight", "mean", "variance") for part in parts
    ]
    if any(number is None or not np.isfinite(number) for number in numbers):
        return None
    x = np.linspace(edges[0], edges[-1], _CURVE_POINTS)
    per_bin = n_samples * (edges[1] - edges[0])
    densities = []
    for part in parts:
        variance = mixture[f"variance_{part}"]
        bell = np.exp(-((x - mixture[f"mean_{part}"]) ** 2) / (2 * variance))
        densities.append(per_bin * mixture[f"weight_{part}"] * bell / np.sqrt(2 * np.pi * variance))
    return (x, *densities)
