"""select: LossTable -> scores. Which samples are kept, and why the others are not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import ProbeConfig, SelectConfig
from shardsieve.data.decisions import (
    NOTHING_DECIDED,
    ReviewDecisions,
    apply_decisions,
)
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import KEPT_REASONS, Reason
from shardsieve.data.record import StageResult
from shardsieve.data.scores import scores_table, write_parquet
from shardsieve.data.subset import FILE, write_subset
from shardsieve.leaks import Leaks
from shardsieve.progress import Progress
from shardsieve.selection.best import fold_of, select_best
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.duplicates import same_pictures
from shardsieve.selection.estimates import (
    tau_for_purity,
    within_quotas,
)
from shardsieve.selection.near_duplicates import near_duplicates
from shardsieve.selection.out_of_class import unlike_any
from shardsieve.selection.projection import Projection, fit_projection
from shardsieve.selection.rounds import PASSES
from shardsieve.selection.summary import repeated, summary
from shardsieve.selection.tables import (
    TRANSITION,
    Judged,
    classes_table,
    cleaning_facts,
    evidence_columns,
    read_cleaning,
    write_transition,
)
from shardsieve.selection.turn import (
    mixture_losses,
    select_turn,
)
from shardsieve_kernels import Backend

if TYPE_CHECKING:
    import torch

# Rows that the axes are found on.
_AXIS_ROWS = 50_000
_BLOCK_ROWS = 16_384
# What `best` maps from files.
_SCRATCH = "scratch"


def select(
    index: SampleIndex,
    features: FeatureStore,
    losses: LossTable,
    config: SelectConfig,
    *,
    probe_config: ProbeConfig,
    out: Path,
    seed: int,
    device: torch.device | None,
    backend: Backend,
    progress: Progress,
    decisions: ReviewDecisions = NOTHING_DECIDED,
    judged_by: str = "",
    earlier: tuple[Path, Mapping[str, Any]] | None = None,
    leaks: Leaks | None = None,
) -> StageResult:
    """Turns losses into p_clean and keeps the samples with p_clean > tau.

    Args:
        index: The samples.
        features: What could not be decoded; and what the recipe `best` learns from.
        losses: The probe's verdict.
        config: Recipe, tau, quotas, fallbacks.
        probe_config: How the probe was trained, and how the held-out ones of `best` are.
        out: Folder that gets `scores.parquet` (a row per sample), `classes.parquet`, `clean.idx`,
            by which the clean samples are read from the original shards, and, from `best`,
            `transition.arrow`.
        seed: Of the folds and shuffles of `best`.
        device: Where `best` trains; may be None for `turn`.
        backend: Which kernels run.
        progress: Where to report.
        decisions: What people decided; it overrules the recipe.
        judged_by: Hash of all that the judgement of `best` depends on; tau and quotas do not.
        earlier: Folder and facts of a finished selection. If it was judged by the same, its
            p_clean is taken over and only the decisions are made anew.
        leaks: Which samples also stand in held-out shards; None: nothing is held out.

    Returns:
        Counts by reason; the kept fraction against tau; a note on every fallback.
    """
    # What a call left that was killed.
    shutil.rmtree(out / _SCRATCH, ignore_errors=True)
    reason_N, detail_N = _unusable(index, features, losses)
    rows = np.flatnonzero(reason_N == Reason.KEPT)
    label_R = index.label_N[rows]
    selection = select_turn(
        mixture_losses(losses.loss_N[rows], config.loss, probe_config.q),
        label_R,
        index.n_classes,
        preset=config.gmm,
        min_samples=config.min_samples,
        reg_covar=config.reg_covar,
        backend=backend,
    )
    cleaning, notes = None, []
    if config.recipe == "best" and len(rows) >= max(config.folds, config.min_samples):
        if earlier is not None and earlier[1].get("judged_by") == judged_by:
            cleaning = read_cleaning(*earlier, rows)
        else:
            assert device is not None, "the caller gives a device where the recipe trains"
            folds = config.folds
            cleaning = _clean(
                index, features, rows, folds, probe_config, out, seed, device, backend, progress
            )
    elif config.recipe == "best":
        notes.append(
            f"{len(rows)} samples are too few for the recipe best (select.min_samples = "
            f"{config.min_samples}); judged by the recipe turn"
        )
    judged = Judged(rows, label_R, selection, cleaning)
    leaks = leaks or Leaks.none(len(index))
    tau, tau_notes = _decide(reason_N, judged, leaks, index.n_classes, config)
    reviewed = apply_decisions(decisions, index, reason_N)
    duplicate_of_N = same_pictures(features, rows, index.numbers("image_size"))
    p_clean_N = np.full(len(index), np.nan)
    p_clean_N[rows] = judged.p_clean_R
    near_N = _near(features, rows, duplicate_of_N, config.near_duplicates, out)
    evidence = evidence_columns(judged, duplicate_of_N, near_N, leaks.key_N, leaks.label_N)
    label_N = reviewed.final_label_N
    scores = scores_table(index, losses, p_clean_N, reason_N, detail_N, evidence, label_N)
    classes = _write_tables(out, index, scores, reason_N, judged)
    notes += [*tau_notes, *repeated(index.label_N, duplicate_of_N), *leaks.notes(index.label_N)]
    notes += repeated(index.label_N, near_N, "nearly that of an earlier one", "near_duplicate_of")
    result = summary(index, reason_N, judged, classes, tau, reviewed, notes)
    result.facts["duplicates"] = int(np.count_nonzero(duplicate_of_N >= 0))
    if config.near_duplicates is not None:
        result.facts["near_duplicates"] = int(np.count_nonzero(near_N >= 0))
    if leaks.made_from:
        result.facts["leaks"] = leaks.facts(index.label_N)
    if cleaning is not None:
        result.facts |= cleaning_facts(cleaning, judged_by)
        told = unlike_any(evidence.out_of_class_N, config.out_of_class)
        result.facts["out_of_class"] = told[0]
        result.notes += told[1]
    return result


def _decide(
    reason_N: npt.NDArray[np.uint8],
    judged: Judged,
    leaks: Leaks,
    n_classes: int,
    config: SelectConfig,
) -> tuple[float, list[str]]:
    """Turns KEPT into something else where the settings say so; returns tau, and notes on it."""
    leaked_R = leaks.found_N[judged.rows] & (config.leaks == "remove")
    reason_N[judged.rows[leaked_R]] = Reason.LEAK
    # A leak takes no place in a quota.
    rows, p_clean_R = judged.rows[~leaked_R], judged.p_clean_R[~leaked_R]
    tau, notes = _tau(p_clean_R, config)
    label_R = judged.label_R[~leaked_R]
    kept_R, over_R = within_quotas(
        p_clean_R, label_R, n_classes, tau, floor=config.floor, cap=config.cap
    )
    reason_N[rows[~kept_R]] = Reason.HIGH_LOSS
    reason_N[rows[over_R]] = Reason.OVER_QUOTA
    return tau, notes


def _near(
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    duplicate_of_N: npt.NDArray[np.int64],
    least_cosine: float | None,
    out: Path,
) -> npt.NDArray[np.int64]:
    """Returns (N,) rows of earlier samples that are nearly, but not quite, the same; else -1."""
    if least_cosine is None:
        return np.full(len(features), -1, np.int64)
    others = rows[duplicate_of_N[rows] < 0]
    return near_duplicates(features, others, least_cosine, out / "alike.npy")


def _unusable(
    index: SampleIndex, features: FeatureStore, losses: LossTable
) -> tuple[npt.NDArray[np.uint8], pa.ChunkedArray]:
    """Returns (N,) reasons, KEPT for what can be judged, and a sentence for what cannot."""
    reason_N = np.where(index.reason_N != Reason.KEPT, index.reason_N, features.reason_N)
    # The probe refuses what is not finite; its row says so.
    lost = (reason_N == Reason.KEPT) & ~np.isfinite(losses.loss_N)
    reason_N[lost] = Reason.NOT_FINITE
    return reason_N, pc.coalesce(index.table.column("detail"), features.details)


def _write_tables(
    out: Path,
    index: SampleIndex,
    scores: pa.Table,
    reason_N: npt.NDArray[np.uint8],
    judged: Judged,
) -> pa.Table:
    """Writes every table of the stage; returns that of the classes."""
    write_parquet(out / "scores.parquet", scores)
    write_subset(out / FILE, index, np.flatnonzero(np.isin(reason_N, KEPT_REASONS)))
    classes = classes_table(index.classes, reason_N[judged.rows], judged)
    write_parquet(out / "classes.parquet", classes)
    if judged.cleaning is not None:
        write_transition(out / TRANSITION, judged.cleaning.transition_KK)
    return classes


def _clean(
    index: SampleIndex,
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    n_folds: int,
    probe_config: ProbeConfig,
    out: Path,
    seed: int,
    device: torch.device,
    backend: Backend,
    progress: Progress,
) -> Cleaning:
    # torch takes seconds to load, and the recipe `turn` does not need it.
    from shardsieve.models.held_out import train_held_out

    fold_R = fold_of(len(rows), n_folds, seed)
    with progress.track("held-out probes", probe_config.epochs * len(rows), "samples") as advance:
        probe_logits = train_held_out(
            features,
            rows,
            index.label_N,
            index.n_classes,
            fold_R,
            probe_config,
            seed=seed,
            device=device,
            backend=backend,
            advance=advance,
        )
    few = rows
    if len(rows) > _AXIS_ROWS:
        few = np.sort(np.random.default_rng([seed, 2]).choice(rows, _AXIS_ROWS, replace=False))
    projection = fit_projection(features.take(few))
    folder = out / _SCRATCH
    folder.mkdir()
    with progress.track("best", PASSES * len(rows), "samples") as advance:
        cleaning = select_best(
            _project(features, rows, projection, folder / "points.npy"),
            projection.views,
            index.label_N[rows],
            index.n_classes,
            fold_R,
            probe_logits=probe_logits,
            folder=folder,
            advance=advance,
        )
    shutil.rmtree(folder)
    return cleaning


def _project(
    features: FeatureStore, rows: npt.NDArray[np.int64], projection: Projection, path: Path
) -> npt.NDArray[np.float16]:
    """Projects the features into a file that is mapped: memory does not grow with the data."""
    points_Rd = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(len(rows), projection.axes_Dd.shape[1])
    )
    start = 0
    for piece, block in features.blocks(rows, _BLOCK_ROWS):
        points_Rd[start : start + len(piece)] = projection.apply(block)
        start += len(piece)
    return points_Rd


def _tau(p_clean_R: npt.NDArray[np.float64], config: SelectConfig) -> tuple[float, list[str]]:
    if config.target_purity is None or not len(p_clean_R):
        return config.tau, []
    tau = tau_for_purity(p_clean_R, config.target_purity)
    if tau is not None:
        return tau, []
    surest = float(p_clean_R.max())
    return surest, [
        f"no selection reaches select.target_purity = {config.target_purity:g}: the surest sample "
        f"has p_clean {surest:.3f}"
    ]
