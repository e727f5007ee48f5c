"""`python -m bench quality`: how right `best`, `turn` and what others use are, cell by cell.

A cell is a data set, a kind of noise and its rate; each is run with several seeds of everything
random. One JSON row per cell and seed goes to `rows.jsonl` as soon as it is known, so that a run
that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from bench import noise
from bench.peers import PEERS, Case, Neighbours, Verdict, confident_joint, hoc, judge
from bench.quality_data import ImageSet
from bench.scoring import by_tau, selection_figures
from shardsieve.config import ProbeConfig, TuneConfig
from shardsieve.models.probe import Heads, head_specs, train_heads
from shardsieve.selection.best import fold_of, select_best
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.estimates import noise_rate
from shardsieve.selection.projection import fit_projection
from shardsieve.selection.turn import select_turn

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of noise."""

    kind: str
    rate: float = 0.0

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.kind} {self.rate:g}" if self.rate else self.kind


PLANTED = (
    *(Cell("symmetric", rate) for rate in (0.2, 0.4, 0.6, 0.8, 0.9)),
    *(Cell("asymmetric", rate) for rate in (0.2, 0.3, 0.4)),
    *(Cell("instance", rate) for rate in (0.2, 0.3, 0.4, 0.5)),
    Cell("class-dependent", 0.3),
    Cell("open set"),
)
# What the constants of `best` were chosen on (with the seeds 0 and 1 of cifar10n); all other cells
# had no part in it.
TUNED_ON = {
    "random1",
    "symmetric 0.4",
    "symmetric 0.8",
    "asymmetric 0.4",
    "instance 0.4",
    "open set",
}


def cells_of(images: ImageSet) -> tuple[Cell, ...]:
    """The sets of human labels that an image set brings, then planted noise."""
    return (*(Cell(name) for name in images.human), *PLANTED)


def plant(cell: Cell, images: ImageSet, seed: int) -> tuple[Any, Any, Any, int]:
    """Returns rows, true labels, given labels, and the number of classes of a cell."""
    rows, true_N, n_classes = np.arange(len(images.label_N)), images.label_N, images.n_classes
    if cell.kind in images.human:
        return rows, true_N, images.human[cell.kind], n_classes
    if cell.kind == "instance":
        given_N = noise.instance_dependent(true_N, cell.rate, n_classes, seed, images.features_ND)
    elif cell.kind == "open set":
        foreign = tuple(range(n_classes - max(1, n_classes // 5), n_classes))
        true_N, given_N = noise.open_set(true_N, foreign, seed)
        n_classes -= len(foreign)
    else:
        kinds = {
            "symmetric": noise.symmetric,
            "asymmetric": noise.asymmetric,
            "class-dependent": noise.class_dependent,
        }
        given_N = kinds[cell.kind](true_N, cell.rate, n_classes, seed)
    return rows, true_N, given_N, n_classes


def run_cell(
    images: ImageSet, cell: Cell, seed: int, neighbours: Neighbours, *, accuracy: bool
) -> dict[str, Any]:
    """Runs every method on one cell with one seed.

    Returns:
        JSON values: the realised noise, the figures of every method, estimates, accuracies.
    """
    _, true_N, given_N, n_classes = plant(cell, images, seed)
    right_N = given_N == true_N
    fold_N = fold_of(len(given_N), FOLDS, seed)
    config = ProbeConfig()
    start = time.process_time()
    held_out_HN = np.stack([np.zeros(len(given_N), bool), *(fold_N == f for f in range(FOLDS))])
    heads = _train(images.features_ND, given_N, n_classes, held_out_HN, config, seed)
    logits_HNK = _logits(heads, images.features_ND)
    probe_seconds = time.process_time() - start
    rows = np.arange(len(given_N))
    own_N = -log_softmax(logits_HNK[0].astype(np.float64), axis=1)[rows, given_N]
    case = Case(
        images.features_ND,
        given_N,
        n_classes,
        logits_HNK[1 + fold_N, rows],
        own_N.astype(np.float32),
        float(1 - right_N.mean()),
        seed,
        neighbours,
    )
    verdicts = {name: judge(method, case) for name, method in PEERS.items()}
    verdicts["turn"] = judge(_turn, case)
    cleaning, verdicts["best"] = _best(case, fold_N)
    row: dict[str, Any] = {
        "data": images.name,
        "cell": cell.name,
        "seed": seed,
        "samples": len(given_N),
        "noise": float(1 - right_N.mean()),
        "probe_seconds": probe_seconds,
        "methods": {
            name: selection_figures(v.p_clean_N, v.keep_N, right_N, given_N, v.calibrated)
            | {"seconds": v.seconds}
            for name, v in verdicts.items()
        },
        "estimates": _estimates(case, cleaning, true_N),
        "by_tau": {name: by_tau(verdicts[name].p_clean_N, right_N) for name in ("turn", "best")},
    }
    if accuracy and len(images.test_label_N) and cell.kind != "open set":
        row["accuracy"] = _accuracies(images, case, true_N, verdicts, cleaning, heads, seed)
    return row


def _turn(case: Case) -> tuple[Any, Any, bool]:
    selection = select_turn(
        case.loss_N,
        case.label_N.astype(np.int32),
        case.n_classes,
        preset="converged",
        min_samples=20,
        reg_covar=5e-4,
        backend="cpu",
    )
    return selection.p_clean_N, selection.p_clean_N > 0.6, True


def _best(case: Case, fold_N: npt.NDArray[np.int8]) -> tuple[Cleaning, Verdict]:
    start = time.process_time()
    projection = fit_projection(case.features_ND[:50_000])
    points_Nd = projection.apply(case.features_ND).astype(np.float16)
    cleaning = select_best(
        points_Nd,
        projection.views,
        case.label_N.astype(np.int32),
        case.n_classes,
        fold_N,
        probe_logits=lambda rows: case.logits_NK[rows],
    )
    seconds = time.process_time() - start
    p_clean_N = cleaning.p_clean_N
    return cleaning, Verdict(p_clean_N, p_clean_N > 0.6, True, seconds)


def _estimates(case: Case, cleaning: Cleaning, true_N: npt.NDArray[np.int64]) -> dict[str, Any]:
    rate = noise_rate(cleaning.p_clean_N, cleaning.rate_F)
    true_KK = noise.true_transition(case.label_N, true_N, case.n_classes)
    wrong_N = (case.label_N != true_N) & (true_N >= 0)

    def off(found_KK: npt.NDArray[np.floating]) -> float:
        return float(np.abs(found_KK - true_KK).sum(1).mean())

    return {
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "covered": bool(rate.low <= case.rate <= rate.high),
        "transition_l1": off(cleaning.transition_KK),
        "transition_l1_confident_joint": off(confident_joint(case)),
        "transition_l1_hoc": off(hoc(case)[0]),
        "suggestion_right": float(np.mean(cleaning.suggested_N[wrong_N] == true_N[wrong_N]))
        if wrong_N.any()
        else None,
    }


def _accuracies(
    images: ImageSet,
    case: Case,
    true_N: npt.NDArray[np.int64],
    verdicts: dict[str, Verdict],
    cleaning: Cleaning,
    gce: Heads,
    seed: int,
) -> dict[str, float]:
    """Accuracy on clean test images of probes on each kept set, all in one pass."""
    config = ProbeConfig(loss="ce")
    names = ["all, noisy", *verdicts]
    left_out_HN = np.stack([np.zeros(len(true_N), bool), *(~v.keep_N for v in verdicts.values())])
    kept = _train(images.features_ND, case.label_N, case.n_classes, left_out_HN, config, seed)
    truth = _train(images.features_ND, true_N, case.n_classes, left_out_HN[:1], config, seed)
    # As `tune.labels = "corrected"`: removed samples come back under a label that is sure enough.
    keep_N = verdicts["best"].keep_N
    label_N = np.where(keep_N, case.label_N, cleaning.suggested_N)
    unsure_1N = ~(keep_N | (cleaning.confidence_N > TuneConfig().correct_above))[None]
    corrected = _train(images.features_ND, label_N, case.n_classes, unsure_1N, config, seed)

    def accuracy(heads: Heads) -> list[float]:
        predicted_HN = _logits(heads, images.test_features_ND).argmax(2)
        return [float(np.mean(row == images.test_label_N)) for row in predicted_HN]

    return {
        **dict(zip(names, accuracy(kept), strict=True)),
        "all, GCE": accuracy(gce)[0],
        "best, corrected": accuracy(corrected)[0],
        "truth": accuracy(truth)[0],
    }


def _train(
    features_ND: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.int64],
    n_classes: int,
    held_out_HN: npt.NDArray[np.bool_],
    config: ProbeConfig,
    seed: int,
) -> Heads:
    """Trains a head per row of `held_out_HN` that leaves its samples out."""
    spec = head_specs(config)[0]
    heads, _ = train_heads(
        features_ND.astype(np.float16),
        label_N.astype(np.int32),
        [spec] * len(held_out_HN),
        config,
        n_classes=n_classes,
        weight=(~held_out_HN).astype(np.float32),
        seed=seed,
    )
    return heads


def _logits(heads: Heads, features_ND: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Returns (H, N, K)."""
    logits_NHK = heads.logits(torch.from_numpy(features_ND.astype(np.float16)))
    return np.ascontiguousarray(logits_NHK.transpose(0, 1).numpy())


def run_cells(
    sets: Iterable[ImageSet],
    rows_file: Path,
    *,
    seeds: int,
    only: Callable[[Cell], bool],
    accuracy: bool,
    budget_s: float,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Runs what is not in the file yet, as long as the budget lasts.

    Seeds outermost: a run that is cut short has every cell with the first seeds.

    Returns:
        All rows of the file.
    """
    rows = read_rows(rows_file)
    known = {(row["data"], row["cell"], row["seed"]) for row in rows}
    end = time.monotonic() + budget_s
    loaded = list(sets)
    near = {images.name: Neighbours(images.features_ND) for images in loaded}
    for seed in range(seeds):
        for images in loaded:
            for cell in filter(only, cells_of(images)):
                if (images.name, cell.name, seed) in known:
                    continue
                if time.monotonic() > end:
                    note("the budget is spent; the same command goes on from here")
                    return rows
                row = run_cell(images, cell, seed, near[images.name], accuracy=accuracy)
                rows.append(row)
                with rows_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                best = row["methods"]["best"]
                note(
                    f"{images.name}, {cell.name}, seed {seed}: noise {row['noise']:.3f}, "
                    f"best AUROC {best['auroc']:.4f}, noisy F1 {best['noisy_f1']:.4f}"
                )
    return rows


def read_rows(rows_file: Path) -> list[dict[str, Any]]:
    """Returns what earlier runs wrote; a last line that was cut off is left out."""
    if not rows_file.is_file():
        return []
    rows = []
    for line in rows_file.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
