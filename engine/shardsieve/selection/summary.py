"""What a selection comes to, for its record: counts, facts, and a sentence on every oddity.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.decisions import Reviewed
from shardsieve.data.index import SampleIndex
from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.estimates import expected_noise, noise_rate
from shardsieve.selection.tables import Judged
from shardsieve.selection.turn import BY_CLASS, BY_POOLED, KEEP_ALL, RULES, Selection
from shardsieve_kernels.class_gmm import ClassStatus

TAUS = tuple(round(0.4 + 0.02 * step, 2) for step in range(16))


def repeated(
    label_N: npt.NDArray[np.int32],
    duplicate_of_N: npt.NDArray[np.int64],
    alike: str = "the same picture as an earlier one",
    column: str = "duplicate_of",
) -> list[str]:
    """Says how many samples show the picture of an earlier one, and under which labels."""
    later = np.flatnonzero(duplicate_of_N >= 0)
    if not len(later):
        return []
    other = int(np.count_nonzero(label_N[later] != label_N[duplicate_of_N[later]]))
    return [
        f"{len(later):,} samples show {alike}, {other:,} of them under another label "
        f"(column {column})"
    ]


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


def summary(
    index: SampleIndex,
    reason_N: npt.NDArray[np.uint8],
    judged: Judged,
    classes: pa.Table,
    tau: float,
    reviewed: Reviewed,
    notes: list[str],
) -> StageResult:
    """Counts by reason, and what the recipe has to say of the whole.

    Args:
        index: The samples.
        reason_N: (N,) u8 `Reason`.
        judged: What the recipe says.
        classes: A row per class, see `classes_table`.
        tau: The threshold.
        reviewed: What people decided.
        notes: Sentences so far.
    """
    counts = {"samples": len(index), "kept": 0, "removed": 0, "unreadable": 0}
    by_reason = {}
    for value, count in zip(*np.unique(reason_N, return_counts=True), strict=True):
        reason = Reason(value)
        counts[reason.group] += int(count)
        by_reason[reason.word] = int(count)
    no_kept = [row["name"] for row in classes.to_pylist() if row["samples"] and not row["kept"]]
    if no_kept:
        notes = [*notes, f"nothing is kept of: {', '.join(no_kept)}"]
    kept, noise = expected_noise(judged.p_clean_R, TAUS)
    facts: dict[str, Any] = {
        "by_reason": by_reason,
        "decisions": reviewed.applied,
        "tau": tau,
        "kept_fraction_by_tau": {f"{at:.2f}": share for at, share in zip(TAUS, kept, strict=True)},
        "within_1e-4_of_tau": int(np.count_nonzero(np.abs(judged.p_clean_R - tau) < 1e-4)),
    }
    if judged.cleaning is not None:
        facts["expected_noise_by_tau"] = {
            f"{at:.2f}": None if np.isnan(share) else share
            for at, share in zip(TAUS, noise, strict=True)
        }
        facts |= _estimates(judged.cleaning)
    else:
        facts |= _mixture_facts(judged.selection)
        notes = [*_fallbacks(index.classes, judged.selection), *notes]
        notes += _wandering(judged.selection)
    return StageResult(counts=counts, facts=facts, notes=[*notes, *reviewed.notes])


def _estimates(cleaning: Cleaning) -> dict[str, Any]:
    rate = noise_rate(cleaning.p_clean_N, cleaning.rate_F)
    return {
        "noise_rate": {"estimate": rate.rate, "low": rate.low, "high": rate.high, "level": 0.95}
    }


def _mixture_facts(selection: Selection) -> dict[str, Any]:
    return {
        "pooled_mixture": _pooled(selection),
        "rules": {
            name: int(np.count_nonzero(selection.rule_K == rule)) for rule, name in enumerate(RULES)
        },
    }


def _wandering(selection: Selection) -> list[str]:
    count = int(np.count_nonzero(~selection.fit.converged_K & (selection.rule_K == BY_CLASS)))
    return [f"{count} class mixtures had not converged when their steps ran out"] if count else []
