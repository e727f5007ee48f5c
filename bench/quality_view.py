"""What README and docs show of `bench quality`: tables and a picture, made from a record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import STYLE

OURS = "best"
# Noise that follows what labels or images are, as people's does.
SYSTEMATIC = ("asymmetric", "instance", "random", "aggre", "worst")
_FIGURES = (("auroc", "AUROC of finding a wrong label"), ("noisy_f1", "F1 of the wrong labels"))
_COLOURS = ("#7f7f7f", "#9a7fbf", "#58a55c", "#2aa198", "#b8860b", "#c0617a", "#4d79a8", "#d9622b")
_OURS_COLOUR = "#c41e1e"
_LEAST_GAIN = -0.0005


def cells_table(cells: Iterable[dict[str, Any]]) -> str:
    """Returns a row per cell: `best` beside the best peer of that cell, and how honest it is."""
    lines = [
        "| labels | wrong | AUROC | best peer | F1 of wrong | best peer | ECE | noise estimated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        ours = cell["methods"][OURS]
        marks = " †" if cell["tuned_on"] else ""
        lines.append(
            f"| {cell['cell']}{marks} | {cell['noise']:.1%} "
            f"| {ours['auroc']['mean']:.3f} | {_peer(cell, 'auroc')} "
            f"| {ours['noisy_f1']['mean']:.3f} | {_peer(cell, 'noisy_f1')} "
            f"| {ours['ece']['mean']:.3f} | {cell['estimates']['rate']:.1%} |"
        )
    return "\n".join(lines)


def _peer(cell: dict[str, Any], figure: str) -> str:
    versus = cell["against"][figure]
    peer = versus["peer"]
    mark = ""
    if versus["p"] is not None and versus["p"] < 0.05:
        mark = " ▲" if versus["gain"] > 0 else " ▼"
    return f"{cell['methods'][peer][figure]['mean']:.3f} {peer}{mark}"


def verdict(summary: dict[str, Any]) -> str:
    """Says in how many cells `best` is ahead, surely ahead, and each cell where it is not."""
    lines = []
    cells = summary["cells"]
    for figure, name in _FIGURES:
        known = [cell for cell in cells if cell["against"][figure] is not None]
        behind = [cell for cell in known if cell["against"][figure]["gain"] < _LEAST_GAIN]
        hard = [cell for cell in known if cell["cell"].startswith(SYSTEMATIC)]
        sure = [cell for cell in hard if _surely_ahead(cell, figure)]
        lines.append(
            f"- {name}: `best` is at least as good as every other method in "
            f"{len(known) - len(behind)} of {len(known)} cells; on people's, asymmetric and "
            f"instance-dependent noise surely better (paired t-test over {summary['seeds']} seeds, "
            f"p < 0.05) than the best of them in {len(sure)} of {len(hard)}."
        )
        if behind:
            told = [
                f"{cell['data']} {cell['cell']} ({cell['against'][figure]['gain']:+.3f}, "
                f"{cell['against'][figure]['peer']})"
                for cell in behind
            ]
            lines.append(f"  Behind in: {'; '.join(told)}.")
    return "\n".join(lines)


def _surely_ahead(cell: dict[str, Any], figure: str) -> bool:
    versus = cell["against"][figure]
    return versus["gain"] > 0 and versus["p"] is not None and versus["p"] < 0.05


def tau_table(cells: Iterable[dict[str, Any]]) -> str:
    """Returns what each tau leaves: share of wrong labels among the kept / share kept."""
    cells = list(cells)
    taus = list(cells[0]["by_tau"][OURS])
    lines = [
        "| labels | recipe | " + " | ".join(f"tau {tau}" for tau in taus) + " |",
        "|---|---|" + "---|" * len(taus),
    ]
    for cell in cells:
        for recipe, told in cell["by_tau"].items():
            parts = [
                "nothing kept"
                if told[tau]["noise_left"] is None
                else f"{told[tau]['noise_left']:.1%} / {told[tau]['kept']:.0%}"
                for tau in taus
            ]
            lines.append(f"| {cell['cell']} | `{recipe}` | {' | '.join(parts)} |")
    return "\n".join(lines)


def accuracy_table(cells: Iterable[dict[str, Any]]) -> str:
    """Returns the accuracy of probes on clean test images, by what they were trained on."""
    known = [cell for cell in cells if cell["accuracy"]]
    names = list(known[0]["accuracy"])
    lines = ["| labels | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for cell in known:
        told = [f"{cell['accuracy'][name]:.3f}" for name in names]
        lines.append(f"| {cell['cell']} | {' | '.join(told)} |")
    return "\n".join(lines)


def draw(summary: dict[str, Any], file: Path) -> None:
    """Draws a dot per method and cell, with the 95 % interval of `best`, as SVG."""
    cells = summary["cells"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.19 * len(cells) + 1.2))
        panels = figure.subplots(1, len(_FIGURES), sharey=True)
        for panel, (name, title) in zip(panels, _FIGURES, strict=True):
            for method, colour in zip(_peers(cells), _COLOURS, strict=False):
                values = [_mean(cell, method, name) for cell in cells]
                panel.plot(values, range(len(cells)), "o", ms=3.2, color=colour, label=method)
            ours = [_mean(cell, OURS, name) for cell in cells]
            halves = [(cell["methods"][OURS][name] or {"half": 0})["half"] for cell in cells]
            panel.errorbar(
                ours,
                range(len(cells)),
                xerr=halves,
                fmt="D",
                ms=4.5,
                color=_OURS_COLOUR,
                label=OURS,
            )
            panel.set_title(title)
            panel.grid(axis="y", color="#eeeeee")
        labels = [f"{cell['data']}, {cell['cell']}" for cell in cells]
        panels[0].set_yticks(range(len(cells)), labels)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=5)
        figure.subplots_adjust(bottom=0.9 / figure.get_figheight(), wspace=0.05, top=0.96)
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def _peers(cells: list[dict[str, Any]]) -> list[str]:
    return [method for method in cells[0]["methods"] if method != OURS]


def _mean(cell: dict[str, Any], method: str, figure: str) -> float:
    told = cell["methods"][method][figure]
    return float("nan") if told is None else float(told["mean"])
