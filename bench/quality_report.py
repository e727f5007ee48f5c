"""Means, intervals and paired tests over the rows of `bench quality`, and the table for people."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from bench.quality import TUNED_ON

FIGURES = (
    "auroc",
    "ap",
    "noisy_f1",
    "noisy_precision",
    "noisy_recall",
    "clean_f1",
    "clean_precision",
    "clean_recall",
    "noise_left",
    "ece",
    "kept",
    "smallest_class",
    "seconds",
)
_COMPARED = ("auroc", "noisy_f1")


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and 95 % interval of every figure, and `best` against the best peer per cell."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["cell"]].append(row)
    cells = [_cell(data, name, group) for (data, name), group in groups.items()]
    return {"seeds": max((cell["seeds"] for cell in cells), default=0), "cells": cells}


def _cell(data: str, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    methods = {
        method: {
            figure: interval([row["methods"][method][figure] for row in rows]) for figure in FIGURES
        }
        for method in rows[0]["methods"]
    }
    accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
    estimates = [row["estimates"] for row in rows]
    return {
        "data": data,
        "cell": name,
        "tuned_on": data.startswith("cifar10n") and name in TUNED_ON,
        "seeds": len(rows),
        "samples": rows[0]["samples"],
        "noise": float(np.mean([row["noise"] for row in rows])),
        "methods": methods,
        "against": {figure: against_peers(rows, figure) for figure in _COMPARED},
        "accuracy": {key: float(np.mean([one[key] for one in accuracies])) for key in accuracies[0]}
        if accuracies
        else None,
        "by_tau": {name: _mean_by_tau(rows, name) for name in rows[0]["by_tau"]},
        "estimates": {
            "rate": float(np.mean([one["rate"] for one in estimates])),
            "off": float(
                np.mean(
                    [
                        abs(one["rate"] - row["noise"])
                        for one, row in zip(estimates, rows, strict=True)
                    ]
                )
            ),
            "covered": sum(one["covered"] for one in estimates),
            **{
                key: float(np.mean([one[key] for one in estimates]))
                for key in estimates[0]
                if key.startswith("transition")
            },
        },
    }


def _mean_by_tau(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tau, figures in rows[0]["by_tau"][name].items():
        found[tau] = {}
        for figure in figures:
            told = interval([row["by_tau"][name][tau][figure] for row in rows])
            found[tau][figure] = None if told is None else told["mean"]
    return found


def interval(values: list[float | None]) -> dict[str, float] | None:
    """Mean and half width of its 95 % interval (Student's t); None where a figure is missing."""
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    half = 0.0
    if len(known) > 1:
        error = known.std(ddof=1) / np.sqrt(len(known))
        half = float(stats.t.ppf(0.975, len(known) - 1) * error)
    return {"mean": float(known.mean()), "half": half}


def against_peers(rows: list[dict[str, Any]], figure: str) -> dict[str, Any] | None:
    """Compares `best` with the peer that has the highest mean, seed by seed (paired t-test)."""
    values: dict[str, npt.NDArray[np.float64]] = {}
    for method in rows[0]["methods"]:
        column = [row["methods"][method][figure] for row in rows]
        if any(value is None for value in column):
            return None
        values[method] = np.array(column)
    best = values.pop("best")
    peer = max(values, key=lambda method: float(values[method].mean()))
    gain = best - values[peer]
    p_value = None
    if len(gain) > 1 and gain.std() > 0:
        p_value = float(stats.ttest_rel(best, values[peer]).pvalue)
    return {"peer": peer, "gain": float(gain.mean()), "p": p_value}


def describe(summary: dict[str, Any]) -> str:
    """Returns the tables as text."""
    lines = []
    for cell in summary["cells"]:
        tuned = "constants chosen on it" if cell["tuned_on"] else "held out"
        lines.append(
            f"\n{cell['data']}, {cell['cell']}: {cell['noise']:.1%} of {cell['samples']:,} wrong, "
            f"{cell['seeds']} seeds, {tuned}"
        )
        lines.append(
            "  method                        AUROC      AP noisy F1  (P    R)  clean F1  noise left"
            "    ECE   kept  smallest      s  accuracy"
        )
        for method, figures in cell["methods"].items():
            lines.append(_line(method, figures, cell["accuracy"]))
        for extra in ("all, noisy", "all, GCE", "best, corrected", "truth"):
            if cell["accuracy"]:
                lines.append(f"  {extra:107} {cell['accuracy'][extra]:8.3f}")
        for figure, versus in cell["against"].items():
            if versus is not None:
                p = "" if versus["p"] is None else f", p = {versus['p']:.2g}"
                lines.append(f"  {figure}: best {versus['gain']:+.4f} against {versus['peer']}{p}")
        found = cell["estimates"]
        lines.append(
            f"  rate {found['rate']:.3f}, off by {found['off']:.3f}, interval covers "
            f"{found['covered']}/{cell['seeds']}; T off (L1) {found['transition_l1']:.3f}, "
            f"confident joint {found['transition_l1_confident_joint']:.3f}, "
            f"HOC {found['transition_l1_hoc']:.3f}"
        )
    return "\n".join(lines)


def _line(method: str, figures: dict[str, Any], accuracy: dict[str, float] | None) -> str:
    def show(figure: str, width: int, digits: int) -> str:
        value = figures[figure]
        return f"{'-':>{width}}" if value is None else f"{value['mean']:{width}.{digits}f}"

    line = (
        f"  {method:27} {show('auroc', 7, 4)} {show('ap', 7, 4)} {show('noisy_f1', 8, 3)} "
        f"{show('noisy_precision', 4, 2)} {show('noisy_recall', 4, 2)} {show('clean_f1', 8, 3)} "
        f"{show('noise_left', 11, 3)} {show('ece', 6, 3)} {show('kept', 6, 3)} "
        f"{show('smallest_class', 8, 0)} {show('seconds', 7, 1)}"
    )
    return line if accuracy is None else f"{line} {accuracy[method]:8.3f}"
