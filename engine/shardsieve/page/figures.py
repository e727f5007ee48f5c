"""Figures as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from shardsieve.page.feature_map import FeatureMap
from shardsieve.page.histograms import LossHistogram

# matplotlib knows no CSS variables: it draws with these, and they are exchanged in its output.
_COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "kept": "#010206",
    "removed": "#010207",
}
_INK, _MUTED, _LINE, _KEPT, _REMOVED = _COLOURS.values()
# A picture cannot take its colours from the page: these are seen on white and on black.
SUSPICION_COLOURS = ("#4f94cd", "#9aa0a6", "#e8743b")
_SUSPICION = LinearSegmentedColormap.from_list("suspicion", SUSPICION_COLOURS)
_MAP_DPI = 150
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shardsieve",
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "path.simplify": True,
}


def draw_histogram(histogram: LossHistogram, unit: str, name: str) -> str:
    """Draws the losses of a class, kept and removed stacked, with the mixture over them.

    Counts stand on a square-root axis.

    Args:
        histogram: What to draw.
        unit: Label of the x axis.
        name: Unique on the page.

    Returns:
        An `<svg>` element.
    """
    with _own_settings():
        figure, axes = _axes(3.4, 1.85, left=0.115, bottom=0.225)
        both = histogram.kept_B + histogram.removed_B
        axes.stairs(histogram.kept_B, histogram.edges, fill=True, color=_KEPT, alpha=0.4, lw=0)
        axes.stairs(
            both,
            histogram.edges,
            baseline=histogram.kept_B,
            fill=True,
            color=_REMOVED,
            alpha=0.45,
            lw=0,
        )
        if histogram.curves is not None:
            x, clean, noisy = histogram.curves
            axes.plot(x, clean + noisy, color=_INK, lw=0.8, ls=(0, (3, 2)))
            axes.plot(x, clean, color=_KEPT)
            axes.plot(x, noisy, color=_REMOVED)
        top = 1.12 * max(1, int(both.max()))
        for crossing in histogram.crossings:
            axes.axvline(crossing, color=_INK, lw=0.9)
            axes.text(crossing, top, f" {crossing:.2f}", va="top", fontsize=7.5)
        axes.set_xlim(histogram.edges[0], histogram.edges[-1])
        # The clean mode towers over the noisy one: on a linear axis nobody would see the latter.
        axes.set_yscale("function", functions=(_root, np.square))
        axes.set_ylim(0, top)
        axes.set_yticks(_root_ticks(top))
        axes.set_xlabel(unit, labelpad=1.5)
        return _to_svg(figure, name)


def draw_against_tau(
    points: Sequence[tuple[float, float]], tau: float, name: str, *, removed: bool = False
) -> str:
    """Draws a share against tau.

    Args:
        points: tau and share, tau ascending.
        tau: The one of the run, marked where it lies in the range.
        name: Unique on the page.
        removed: Whether it is drawn in the colour of what is removed.

    Returns:
        An `<svg>` element.
    """
    taus = [point[0] for point in points]
    shares = [point[1] for point in points]
    with _own_settings():
        figure, axes = _axes(3.4, 1.85, left=0.145, bottom=0.225)
        colour = _REMOVED if removed else _KEPT
        axes.plot(taus, shares, color=colour, marker="o", markersize=2.5)
        # At least a tenth of the whole, so that a flat line looks flat.
        low, high = min(shares), max(shares)
        room = max(0.02, (0.1 - (high - low)) / 2)
        axes.set_ylim(max(0.0, low - room), min(1.0, high + room) + 0.005)
        if taus[0] <= tau <= taus[-1]:
            axes.axvline(tau, color=_INK, lw=0.9)
            # On the side with more room.
            is_left = tau - taus[0] < taus[-1] - tau
            axes.annotate(
                f"tau of this run: {tau:g}",
                (tau, 0),
                xycoords=("data", "axes fraction"),
                xytext=(3 if is_left else -3, 3),
                textcoords="offset points",
                ha="left" if is_left else "right",
                va="bottom",
            )
        axes.set_xlabel("tau", labelpad=1.5)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color=_LINE, lw=0.4, alpha=0.6)
        return _to_svg(figure, name)


def draw_map(feature_map: FeatureMap, name: str) -> str:
    """Draws a feature map: points as one small picture, coloured by suspicion, and class names.

    Args:
        feature_map: What to draw.
        name: Unique on the page.

    Returns:
        An `<svg>` element.
    """
    x_P2 = feature_map.x_P2
    # The most suspicious lie on top.
    order = np.argsort(feature_map.suspicion_P, kind="stable")
    with _own_settings():
        figure, axes = _axes(7.2, 4.8, left=0.01, bottom=0.02)
        points = axes.scatter(
            *x_P2[order].T,
            c=feature_map.suspicion_P[order],
            cmap=_SUSPICION,
            vmin=0,
            vmax=1,
            s=9,
            lw=0,
            alpha=0.75,
        )
        points.set_rasterized(True)
        figure.dpi = _MAP_DPI
        for text, x, y in feature_map.names:
            axes.text(x, y, text, ha="center", va="center", weight="bold", parse_math=False)
        axes.set_axis_off()
        return _to_svg(figure, name)


def draw_epochs(metrics: Sequence[dict[str, Any]], column: str, name: str, *, share: bool) -> str:
    """Draws one number of fine-tuning against the epoch.

    Args:
        metrics: One row per epoch.
        column: Which number.
        name: Unique on the page.
        share: Whether it is a fraction, shown in percent.

    Returns:
        An `<svg>` element.
    """
    with _own_settings():
        figure, axes = _axes(3.4, 1.85, left=0.14, bottom=0.225)
        epochs = [row["epoch"] for row in metrics]
        axes.plot(epochs, [row[column] for row in metrics], color=_KEPT, marker="o", markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color=_LINE, lw=0.4, alpha=0.6)
        axes.set_xlabel("epoch", labelpad=1.5)
        return _to_svg(figure, name)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Makes a figure independent of the user's matplotlibrc, and leaves no trace."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def _root(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # The axis asks a little below zero as well.
    roots: npt.NDArray[np.float64] = np.sqrt(np.maximum(values, 0))
    return roots


def _root_ticks(top: float) -> list[int]:
    """Returns counts about evenly spaced on a square-root axis: 0 and round numbers."""
    ticks = [0]
    for share in (0.3, 0.6, 0.9):
        goal = top * share**2
        unit = 10 ** int(np.log10(max(goal, 1)))
        tick = max(1, round(goal / unit) * unit)
        if tick > ticks[-1]:
            ticks.append(tick)
    return ticks


def _axes(width: float, height: float, *, left: float, bottom: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((left, bottom, 0.985 - left, 0.97 - bottom))
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _to_svg(figure: Figure, name: str) -> str:
    packed = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(packed, format="svg", metadata=no_metadata)
    svg = packed.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # What only a file of its own needs, and a style sheet that would apply to the whole page.
    svg = re.sub(
        r"<!--.*?-->\s*|<style.*?</style>\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.S
    )
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    for word, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{word})")
    # Every figure counts its parts from 1 and all of them share the page; most are never used.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda part: part[0] if part[1] in used else "", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg {view_box[0]} aria-hidden="true" focusable="false">{body}'
