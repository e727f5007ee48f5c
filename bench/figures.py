"""The pictures of docs/concepts.md, from a real run: scikit-learn's digits with planted noise.

Shapes: N samples, D features, K = 10 classes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from bench import data, noise
from shardsieve.config import ProbeConfig, load_config
from shardsieve.models.probe.arrays import probe_arrays
from shardsieve.pipeline import clean
from shardsieve.progress import Progress
from shardsieve.selection.turn import Selection, select_turn
from shardsieve_kernels import resolve_backend

TAU, CLASS, RATE = 0.6, 3, 0.4
_RIGHT, _WRONG, _INK = "#2f7fc1", "#d9622b", "#444444"
# Text as outlines: the same on every machine, and no font of the reader's is needed.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "shardsieve",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Digits:
    """Features of the images, and the truth about their labels."""

    features_ND: npt.NDArray[np.float16]
    images: npt.NDArray[np.float64]
    true_N: npt.NDArray[np.int64]
    given_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """What a probe and the mixtures on its losses make of some labels."""

    wrong_N: npt.NDArray[np.bool_]
    loss_N: npt.NDArray[np.float32]
    pred_N: npt.NDArray[np.int32]
    selection: Selection


def write_figures(out: Path, progress: Progress) -> list[Path]:
    """Runs shardsieve on the digits, judges their labels, and draws what happened.

    Args:
        out: Folder that gets the pictures.
        progress: Where to report.
    """
    out.mkdir(parents=True, exist_ok=True)
    digits = _embed(progress)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in _draw(digits).items():
            is_photo = name == "concepts-removed"
            file = out / f"{name}.{'png' if is_photo else 'svg'}"
            metadata = {} if is_photo else {"Date": None}
            figure.savefig(file, bbox_inches="tight", dpi=120, metadata=metadata)
            written.append(file)
    return written


def _draw(digits: Digits) -> dict[str, Figure]:
    turn = _judge(digits, digits.given_N)
    plain = _judge(digits, digits.given_N, loss="ce")
    confused = _judge(digits, noise.asymmetric(digits.true_N, RATE, 10, seed=0))
    losses = ("trained with cross entropy", "generalized cross entropy, q = 0.7")
    kinds = ("wrong labels of any class", "wrong labels all of the next class")
    return {
        "concepts-losses": _draw_losses(digits, turn),
        "concepts-robust": _draw_pair(plain, turn, losses),
        "concepts-tau": _draw_tau(turn),
        "concepts-confused": _draw_pair(turn, confused, kinds),
        "concepts-removed": _draw_images(digits, turn),
    }


def _embed(progress: Progress) -> Digits:
    from sklearn.datasets import load_digits

    with tempfile.TemporaryDirectory() as name:
        shards = data.digits(Path(name) / "shards", noise=RATE)
        config = load_config(values={"report.map": 0, **shards.settings})
        run = clean(shards.train, Path(name) / "RUN", config, progress=progress)
        keys = run.scores.column("key").to_pylist()
        assert shards.truth is not None
        truth = pq.read_table(shards.truth)
        true_of = dict(zip(*(truth.column(c).to_pylist() for c in truth.column_names), strict=True))
        numbers = [int(key.removeprefix("digit-")) for key in keys]
        return Digits(
            run.features.take(np.arange(len(keys))),
            load_digits().images[numbers],
            np.array([true_of[key] for key in keys]),
            run.index.label_N.astype(np.int64),
        )


def _judge(digits: Digits, given_N: npt.NDArray[np.int64], loss: str = "gce") -> Judged:
    label_N = given_N.astype(np.int32)
    backend = resolve_backend("cpu")
    losses = probe_arrays(
        digits.features_ND,
        label_N,
        10,
        ProbeConfig(loss=loss),
        seed=0,
        device=torch.device("cpu"),
        backend=backend,
    )
    selection = select_turn(
        losses.loss_N,
        label_N,
        10,
        preset="converged",
        min_samples=20,
        reg_covar=5e-4,
        backend=backend,
    )
    return Judged(given_N != digits.true_N, losses.loss_N, losses.pred_N, selection)


def _stacked(axes: Axes, judged: Judged, rows_N: npt.NDArray[np.bool_], edges: Any) -> None:
    sides = [judged.loss_N[rows_N & ~judged.wrong_N], judged.loss_N[rows_N & judged.wrong_N]]
    labels = [f"label is right ({len(sides[0])})", f"label is wrong ({len(sides[1])})"]
    axes.hist(sides, edges, stacked=True, color=[_RIGHT, _WRONG], alpha=0.75, label=labels)
    axes.set_xlabel("loss (cross entropy, nats)")


def _draw_losses(digits: Digits, judged: Judged) -> Figure:
    figure = Figure((7.4, 2.9), facecolor="white")
    axes, below = figure.subplots(1, 2, width_ratios=(1.5, 1))
    rows_N = digits.given_N == CLASS
    edges = np.linspace(0, float(np.quantile(judged.loss_N[rows_N], 0.995)), 49)
    _stacked(axes, judged, rows_N, edges)
    fit = judged.selection.fit
    x = np.linspace(0, edges[-1], 400)
    for part, style in enumerate(("-", "--")):
        bell = norm.pdf(x, fit.means_K2[CLASS, part], np.sqrt(fit.variances_K2[CLASS, part]))
        scale = rows_N.sum() * (edges[1] - edges[0]) * fit.weights_K2[CLASS, part]
        name = ("low", "high")[part]
        axes.plot(x, scale * bell, style, color=_INK, lw=1.2, label=f"the component of {name} loss")
    axes.set_ylabel(f'samples labelled "{CLASS}"')
    axes.legend(fontsize=7.5)
    order = np.argsort(judged.loss_N[rows_N])
    loss_R = judged.loss_N[rows_N][order]
    p_clean_R = judged.selection.p_clean_N[rows_N][order]
    wrong_R = judged.wrong_N[rows_N][order]
    below.plot(loss_R, p_clean_R, color=_INK, lw=0.8)
    for side_R, colour in ((~wrong_R, _RIGHT), (wrong_R, _WRONG)):
        below.plot(loss_R[side_R], p_clean_R[side_R], ".", ms=4, color=colour)
    below.axhline(TAU, color=_INK, lw=0.8, ls=":")
    below.text(edges[-1], TAU + 0.02, f"tau = {TAU:g}: kept above", ha="right", fontsize=7.5)
    below.set(xlim=(0, edges[-1]), xlabel="loss (cross entropy, nats)", ylabel="p_clean")
    figure.tight_layout()
    return figure


def _draw_pair(left: Judged, right: Judged, titles: tuple[str, str]) -> Figure:
    figure = Figure((7.4, 2.6), facecolor="white")
    for axes, judged, title in zip(figure.subplots(1, 2), (left, right), titles, strict=True):
        _stacked(axes, judged, np.ones(len(judged.wrong_N), bool), np.geomspace(1e-3, 15, 37))
        axes.set_xscale("log")
        axes.minorticks_off()
        area = roc_auc_score(judged.wrong_N, judged.loss_N)
        axes.set_title(f"{title}\nwrong ranked above right: {area:.1%}")
        axes.legend(fontsize=7.5, loc="upper left")
    figure.axes[0].set_ylabel("samples")
    figure.tight_layout()
    return figure


def _draw_tau(judged: Judged) -> Figure:
    figure = Figure((7.4, 2.7), facecolor="white")
    axes = figure.subplots()
    taus = np.linspace(0, 0.99, 100)
    p_clean_N = judged.selection.p_clean_N
    kept = [p_clean_N > tau for tau in taus]
    curves = {
        "right labels among the kept": ("-", [1 - judged.wrong_N[rows].mean() for rows in kept]),
        "mean p_clean of the kept": ("--", [p_clean_N[rows].mean() for rows in kept]),
        "kept, of all samples": (":", [rows.mean() for rows in kept]),
        "kept, of those labelled right": ("-.", [rows[~judged.wrong_N].mean() for rows in kept]),
    }
    for name, (style, values) in curves.items():
        colour = _WRONG if name.startswith("kept") else _RIGHT
        axes.plot(taus, values, style, color=colour, label=name)
    axes.axvline(TAU, color=_INK, lw=0.8, ls=":")
    axes.set(xlabel="tau", ylim=(0.5, 1.01))
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    return figure


def _draw_images(digits: Digits, judged: Judged) -> Figure:
    kept_N = judged.selection.p_clean_N > TAU
    rows = {
        "removed, and wrong": np.flatnonzero(~kept_N & judged.wrong_N),
        "removed, but right": np.flatnonzero(~kept_N & ~judged.wrong_N),
        "kept, but wrong": np.flatnonzero(kept_N & judged.wrong_N),
    }
    figure = Figure((8.2, 4.1), facecolor="white")
    grid = figure.subplots(len(rows), 10)
    rng = np.random.default_rng(0)
    for line, (title, found) in zip(grid, rows.items(), strict=True):
        shown = np.sort(rng.permutation(found)[: len(line)])
        line[0].text(
            0, 1.75, f"{title} ({len(found)} samples)", transform=line[0].transAxes, fontsize=9
        )
        for axes in line:
            axes.axis("off")
        for axes, row in zip(line, shown, strict=False):
            axes.imshow(digits.images[row], cmap="gray_r", interpolation="nearest")
            axes.set_title(
                f"given {digits.given_N[row]}\nlooks {judged.pred_N[row]}", fontsize=7, pad=2
            )
    figure.subplots_adjust(hspace=1.2, wspace=0.3)
    return figure
