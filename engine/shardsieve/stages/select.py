"""select: LossTable -> scores. Which samples are kept, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardsieve.config import SelectConfig
from shardsieve.data.decisions import (
    NOTHING_DECIDED,
    ReviewDecisions,
    Reviewed,
    apply_decisions,
    with_final_label,
)
from shardsieve.data.features import FeatureStore
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import KEPT_REASONS, Reason
from shardsieve.data.record import StageResult
from shardsieve.data.scores import scores_table, write_parquet
from shardsieve.data.subset import FILE, write_subset
from shardsieve.selection.turn import (
    BY_CLASS,
    BY_POOLED,
    KEEP_ALL,
    RULES,
    Selection,
    mixture_losses,
    select_turn,
)
from shardsieve_kernels import Backend
from shardsieve_kernels.class_gmm import ClassStatus

TAUS = tuple(round(0.4 + 0.02 * step, 2) for step in range(16))


def select(
    index: SampleIndex,
    features: FeatureStore,
    losses: LossTable,
    config: SelectConfig,
    *,
    q: float,
    out: Path,
    backend: Backend,
    decisions: ReviewDecisions = NOTHING_DECIDED,
) -> StageResult:
    """Turns losses into p_clean and keeps the samples with p_clean > tau.

    Args:
        index: The samples.
        features: For what could not be decoded.
        losses: The probe's verdict.
        config: Recipe, tau, fallbacks.
        q: Of the probe's loss, for `config.loss` = "gce".
        out: Folder that gets `scores.parquet` (a row per sample), `classes.parquet`, and
            `clean.idx`, by which the clean samples are read from the original shards.
        backend: Which kernels run.
        decisions: What people decided; it overrules the recipe.

    Returns:
        Counts by reason; the kept fraction against tau; a note on every fallback.
    """
    reason_N = np.where(index.reason_N != Reason.KEPT, index.reason_N, features.reason_N)
    detail_N = pc.coalesce(index.table.column("detail"), features.details)
    # The probe refuses what is not finite; its row says so.
    lost = (reason_N == Reason.KEPT) & ~np.isfinite(losses.loss_N)
    reason_N[lost] = Reason.NOT_FINITE
    rows = np.flatnonzero(reason_N == Reason.KEPT)
    label_R = index.label_N[rows]
    selection = select_turn(
        mixture_losses(losses.loss_N[rows], config.loss, q),
        label_R,
        index.n_classes,
        preset=config.gmm,
        min_samples=config.min_samples,
        reg_covar=config.reg_covar,
        backend=backend,
    )
    p_clean_N = np.full(len(index), np.nan)
    p_clean_N[rows] = selection.p_clean_N
    reason_N[rows[~(selection.p_clean_N > config.tau)]] = Reason.HIGH_LOSS
    reviewed = apply_decisions(decisions, index, reason_N)
    scores = scores_table(index, losses, p_clean_N, reason_N, detail_N)
    write_parquet(out / "scores.parquet", with_final_label(scores, reviewed.final_label_N))
    write_subset(out / FILE, index, np.flatnonzero(np.isin(reason_N, KEPT_REASONS)))
    classes = _classes_table(index.classes, label_R, reason_N[rows], selection)
    write_parquet(out / "classes.parquet", classes)
    return _summary(index, reason_N, selection, classes, config, reviewed)


def _classes_table(
    classes: Sequence[str],
    label_R: npt.NDArray[np.int32],
    reason_R: npt.NDArray[np.uint8],
    selection: Selection,
) -> pa.Table:
    n_classes = len(classes)
    fit = selection.fit
    kept_R = np.isin(reason_R, KEPT_REASONS)
    kept_K = np.bincount(label_R[kept_R], minlength=n_classes)
    columns = {
        "label": np.arange(n_classes, dtype=np.int32),
        "name": pa.array(list(classes), pa.string()),
        "samples": np.bincount(label_R, minlength=n_classes),
        "kept": kept_K,
        "rule": pa.array([RULES[rule] for rule in selection.rule_K]),
        "why": pa.array(list(selection.why_K), pa.string()),
        "converged": fit.converged_K,
        "n_iter": fit.n_iter_K,
        "bic_gain": fit.bic_gain_K,
        "separation": fit.separation_K,
    }
    for component, name in enumerate(("clean", "noisy")):
        columns[f"weight_{name}"] = fit.weights_K2[:, component]
        columns[f"mean_{name}"] = fit.means_K2[:, component]
        columns[f"variance_{name}"] = fit.variances_K2[:, component]
    return pa.table(columns)


def _pooled(selection: Selection) -> dict[str, list[float]] | None:
    """What classes without a mixture of their own were judged by; None when it could not be."""
    pooled = selection.pooled
    if pooled.status_K[0] != ClassStatus.FITTED:
        return None
    return {
        "weights": pooled.weights_K2[0].tolist(),
        "means": pooled.means_K2[0].tolist(),
        "variances": pooled.variances_K2[0].tolist(),
    }


def _fallbacks(classes: Sequence[str], selection: Selection) -> list[str]:
    """One sentence for all classes that fell back for the same reason, each of them named."""
    verdict = {BY_POOLED: "judged by the mixture of all classes", KEEP_ALL: "kept whole"}
    named: dict[tuple[str, int], list[str]] = {}
    for name, why, rule in zip(classes, selection.why_K, selection.rule_K.tolist(), strict=True):
        if rule != BY_CLASS:
            named.setdefault((why, rule), []).append(name)
    return [
        f"{len(names)} class{'es' if len(names) > 1 else ''} ({', '.join(names)}): {why}; "
        + verdict[rule]
        for (why, rule), names in named.items()
    ]


def _summary(
    index: SampleIndex,
    reason_N: npt.NDArray[np.uint8],
    selection: Selection,
    classes: pa.Table,
    config: SelectConfig,
    reviewed: Reviewed,
) -> StageResult:
    counts = {"samples": len(index), "kept": 0, "removed": 0, "unreadable": 0}
    by_reason = {}
    for value, count in zip(*np.unique(reason_N, return_counts=True), strict=True):
        reason = Reason(value)
        counts[reason.group] += int(count)
        by_reason[reason.word] = int(count)
    notes = _fallbacks(index.classes, selection)
    no_kept = [row["name"] for row in classes.to_pylist() if row["samples"] and not row["kept"]]
    if no_kept:
        notes.append(f"nothing is kept of: {', '.join(no_kept)}")
    wandering = int(np.count_nonzero(~selection.fit.converged_K & (selection.rule_K == BY_CLASS)))
    if wandering:
        notes.append(f"{wandering} class mixtures had not converged when their steps ran out")
    notes += reviewed.notes
    judged = selection.p_clean_N
    return StageResult(
        counts=counts,
        facts={
            "by_reason": by_reason,
            "decisions": reviewed.applied,
            "kept_fraction_by_tau": {f"{tau:.2f}": float(np.mean(judged > tau)) for tau in TAUS},
            "pooled_mixture": _pooled(selection),
            "within_1e-4_of_tau": int(np.count_nonzero(np.abs(judged - config.tau) < 1e-4)),
            "rules": {
                name: int(np.count_nonzero(selection.rule_K == rule))
                for rule, name in enumerate(RULES)
            },
        },
        notes=notes,
    )
