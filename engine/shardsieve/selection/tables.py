"""The tables of the stage `select`: evidence per sample, a row per class, the transition matrix.

Shapes: N samples, R judged ones, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardsieve.data.reason import KEPT_REASONS
from shardsieve.data.scores import Evidence
from shardsieve.data.table import read_ipc, write_ipc
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.estimates import class_weights
from shardsieve.selection.turn import RULES, Selection

# In the table of classes, where no mixture decided.
BY_POSTERIOR = "posterior"
TRANSITION = "transition.arrow"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a recipe says of the judged rows.

    Attributes:
        rows: (R,) their numbers.
        label_R: Given labels.
        selection: The mixtures per class, whichever recipe decides.
        cleaning: What `best` says; None for `turn`.
    """

    rows: npt.NDArray[np.int64]
    label_R: npt.NDArray[np.int32]
    selection: Selection
    cleaning: Cleaning | None

    @property
    def p_clean_R(self) -> npt.NDArray[np.float64]:
        """(R,) probability that the label is right, by the recipe that decides."""
        return self.selection.p_clean_N if self.cleaning is None else self.cleaning.p_clean_N


def evidence_columns(
    judged: Judged,
    duplicate_of_N: npt.NDArray[np.int64],
    near_duplicate_of_N: npt.NDArray[np.int64],
    leak_of_N: pa.Array,
    leak_label_N: npt.NDArray[np.int32],
) -> Evidence:
    """Returns what is known beyond p_clean of all N samples.

    Args:
        judged: What the recipe says.
        duplicate_of_N: (N,) row of the first sample with the same picture, -1 for none.
        near_duplicate_of_N: (N,) row of an earlier sample with nearly this picture, -1 for none.
        leak_of_N: N keys of held-out samples with the same image, null for none.
        leak_label_N: (N,) i32, their labels, -1 for none.
    """
    evidence = replace(
        Evidence.empty(len(duplicate_of_N)),
        duplicate_of_N=duplicate_of_N,
        near_duplicate_of_N=near_duplicate_of_N,
        leak_of_N=leak_of_N,
        leak_label_N=leak_label_N,
    )
    cleaning, rows = judged.cleaning, judged.rows
    if cleaning is not None:
        evidence.agreement_N[rows] = cleaning.agree_N
        evidence.margin_N[rows] = cleaning.margin_N
        evidence.suggested_N[rows] = cleaning.suggested_N
        evidence.confidence_N[rows] = cleaning.confidence_N
        evidence.neighbours_N[rows] = cleaning.neighbours_N
        evidence.distance_N[rows] = cleaning.distance_N
        evidence.out_of_class_N[rows] = cleaning.foreign_N
    return evidence


def cleaning_facts(cleaning: Cleaning, judged_by: str) -> dict[str, Any]:
    """What a record keeps of `best`, beside the tables, so that `read_cleaning` can go on from it.

    Args:
        cleaning: Of a selection.
        judged_by: Hash of all it depends on.
    """
    return {
        "judged_by": judged_by,
        "opinions": dict(zip(cleaning.opinions, cleaning.weight_M.tolist(), strict=True)),
        "log_likelihood": list(cleaning.log_likelihood),
        "rate_by_fold": cleaning.rate_F.tolist(),
    }


def read_cleaning(folder: Path, facts: Mapping[str, Any], rows: npt.NDArray[np.int64]) -> Cleaning:
    """Reads what `best` said in a finished selection.

    Args:
        folder: Of that selection.
        facts: Of its record.
        rows: (R,) the judged rows.
    """

    def column(name: str) -> npt.NDArray[Any]:
        table = pq.read_table(folder / "scores.parquet", columns=[name])
        values: npt.NDArray[Any] = table.column(0).take(pa.array(rows)).to_numpy()
        return values

    opinions = facts["opinions"]
    return Cleaning(
        p_clean_N=column("p_clean"),
        margin_N=column("margin_unseen"),
        agree_N=column("agreement"),
        suggested_N=column("suggested_label"),
        confidence_N=column("suggestion_confidence"),
        neighbours_N=column("neighbour_agreement"),
        distance_N=column("distance"),
        foreign_N=column("out_of_class"),
        transition_KK=read_transition(folder / TRANSITION),
        weight_M=np.array(list(opinions.values())),
        opinions=tuple(opinions),
        log_likelihood=tuple(facts["log_likelihood"]),
        rate_F=np.array(facts["rate_by_fold"]),
    )


def read_transition(path: Path) -> npt.NDArray[np.float64]:
    """Returns (K, K) P(given = column | true = row), as `write_transition` wrote it."""
    table = read_ipc(path)
    given = table.column("given").combine_chunks().flatten().to_numpy()
    transition_KK: npt.NDArray[np.float64] = given.reshape(table.num_rows, -1)
    return transition_KK


def write_transition(path: Path, transition_KK: npt.NDArray[np.float64]) -> None:
    """Writes P(given | true): a row per true class, with a list over the given ones."""
    n_classes = len(transition_KK)
    given = pa.FixedSizeListArray.from_arrays(pa.array(transition_KK.reshape(-1)), n_classes)
    write_ipc(path, pa.table({"true": np.arange(n_classes, dtype=np.int32), "given": given}))


def classes_table(
    classes: Sequence[str], reason_R: npt.NDArray[np.uint8], judged: Judged
) -> pa.Table:
    """Returns a row per class: counts, estimates, and the mixture of its losses."""
    n_classes, label_R = len(classes), judged.label_R
    fit, cleaning = judged.selection.fit, judged.cleaning
    samples_K = np.bincount(label_R, minlength=n_classes)
    kept_K = np.bincount(label_R[np.isin(reason_R, KEPT_REASONS)], minlength=n_classes)
    by_posterior = cleaning is not None
    columns: dict[str, Any] = {
        "label": np.arange(n_classes, dtype=np.int32),
        "name": pa.array(list(classes), pa.string()),
        "samples": samples_K,
        "kept": kept_K,
        "weight": class_weights(kept_K),
        "rule": pa.array(
            [BY_POSTERIOR if by_posterior else RULES[rule] for rule in judged.selection.rule_K]
        ),
        "why": pa.array([""] * n_classes if by_posterior else list(judged.selection.why_K)),
        "noise_given": _noise_given(judged, samples_K),
        "noise_true": pa.nulls(n_classes, pa.float64())
        if cleaning is None
        else pa.array(1 - np.diag(cleaning.transition_KK), mask=samples_K == 0),
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


def _noise_given(judged: Judged, samples_K: npt.NDArray[np.int64]) -> pa.Array:
    """Expected share of wrong labels among the samples that were given each class."""
    wrong_K = np.bincount(judged.label_R, 1 - judged.p_clean_R, minlength=len(samples_K))
    return pa.array(wrong_K / np.maximum(samples_K, 1), mask=samples_K == 0)
