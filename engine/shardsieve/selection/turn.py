"""The recipe `turn`: a two-component Gaussian mixture on the losses of each class.

TURN, "Fine tuning Pre-trained Models for Robustness Under Noisy Labels" (arXiv 2310.17668), step 2:
for each class, as labelled, the posterior of the component with the lower mean is p_clean. What
the paper leaves open (a class with few samples, equal losses or one mode) is declared here.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shardsieve_kernels import Backend
from shardsieve_kernels.class_gmm import ClassStatus, GmmFit, class_gmm, mixture_p_clean

Preset = Literal["converged", "sklearn-compatible"]
# How the p_clean of a class came about, in the order of the numbers in `Selection.rule_K`.
RULES = ("class", "pooled", "keep_all")
BY_CLASS, BY_POOLED, KEEP_ALL = range(3)


@dataclass(frozen=True, slots=True)
class Selection:
    """p_clean of every sample, and how it was come by.

    Attributes:
        p_clean_N: (N,) f64 in [0, 1].
        rule_K: (K,) u8, index into `RULES`: the class's own mixture, the mixture of all classes,
            or no mixture at all, which keeps the class whole.
        why_K: K sentences for classes that are not judged by their own mixture, else "".
        fit: The mixtures per class, as fitted, whether they are used or not.
        pooled: The mixture of all classes.
    """

    p_clean_N: npt.NDArray[np.float64]
    rule_K: npt.NDArray[np.uint8]
    why_K: tuple[str, ...]
    fit: GmmFit
    pooled: GmmFit


def mixture_losses(
    loss_N: npt.NDArray[np.float32], loss: Literal["ce", "gce"], q: float
) -> npt.NDArray[np.float32]:
    """Turns cross entropy (nats) into the loss that the mixture sees.

    GCE follows from cross entropy alone: (1 - p^q) / q = -expm1(-q CE) / q.
    """
    if loss == "ce":
        return loss_N
    return (-np.expm1(-q * loss_N.astype(np.float64)) / q).astype(np.float32)


def select_turn(
    losses_N: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int32],
    n_classes: int,
    *,
    preset: Preset,
    min_samples: int,
    reg_covar: float,
    backend: Backend,
) -> Selection:
    """Fits a mixture to each class and falls back where a class does not support one.

    A class has one mode when one Gaussian describes its losses as well as two (BIC). Such a class,
    one with fewer than `min_samples` samples and one whose losses are all equal are judged by the
    mixture of all classes; when that has one mode too, nothing tells wrong labels from right ones
    and the class is kept whole.

    Args:
        losses_N: (N,) finite losses.
        labels_N: (N,) labels in [0, n_classes).
        n_classes: K.
        preset: Numerics of the fit.
        min_samples: Fewest samples for a mixture of its own.
        reg_covar: Added to the variances; the authors' earlier code has 5e-4 on losses scaled to
            [0, 1], which widens the narrow clean component and so keeps hard clean samples.
        backend: Which kernels run.
    """
    fit, pooled = (
        class_gmm(
            losses_N,
            groups_N,
            n_groups,
            preset=preset,
            min_samples=min_samples,
            reg_covar=reg_covar,
            backend=backend,
        )
        for groups_N, n_groups in ((labels_N, n_classes), (np.zeros_like(labels_N), 1))
    )
    why_K = _why_not(fit, min_samples)
    pooled_why = _why_not(pooled, min_samples)[0]
    # An empty class has nothing to judge: whatever its rule, it must not be reported as a fallback.
    failed_K = np.array([bool(why) for why in why_K]) & (fit.status_K != ClassStatus.EMPTY)
    rule_K = np.where(failed_K, KEEP_ALL if pooled_why else BY_POOLED, BY_CLASS).astype(np.uint8)
    if pooled_why:
        both = f"; all classes together: {pooled_why}"
        why_K = tuple(
            f"{why}{both}" if failed else why for why, failed in zip(why_K, failed_K, strict=True)
        )
    p_clean_N = fit.p_clean_N.copy()
    rule_N = rule_K[labels_N]
    p_clean_N[rule_N == KEEP_ALL] = 1.0
    judged = rule_N == BY_POOLED
    if judged.any():
        p_clean_N[judged] = mixture_p_clean(
            losses_N[judged],
            pooled.weights_K2[0],
            pooled.means_K2[0],
            pooled.variances_K2[0],
            monotone=preset == "converged",
        )
    return Selection(p_clean_N, rule_K, why_K, fit, pooled)


def _why_not(fit: GmmFit, min_samples: int) -> tuple[str, ...]:
    sentences = {
        ClassStatus.EMPTY: "no sample",
        ClassStatus.TOO_FEW: f"fewer than {min_samples} samples",
        ClassStatus.EQUAL: "all losses are equal",
        ClassStatus.COLLAPSED: "one component of the mixture vanished",
    }
    why = [sentences.get(ClassStatus(status), "") for status in fit.status_K]
    one_mode = (fit.status_K == ClassStatus.FITTED) & (fit.bic_gain_K <= 0)
    for label in np.flatnonzero(one_mode):
        why[label] = "one mode: one Gaussian describes the losses as well as two"
    return tuple(why)


def balanced_draw(
    labels_R: npt.NDArray[np.int32],
    n_classes: int,
    *,
    at_most: int | None,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], int, list[int]]:
    """Draws the same number of samples from every class that has any, without replacement.

    D_clean = union over c of U(D_clean_c, N) with N the smallest selected count (TURN, step 2).
    Classes with no sample are left out of the minimum, which they would make 0, and returned.

    Args:
        labels_R: (R,) labels of the clean samples.
        n_classes: K.
        at_most: Upper limit of the samples drawn in total.
        rng: Source of the draw.

    Returns:
        Positions in `labels_R` in random order, N, and the classes that have no clean sample.
    """
    counts_K = np.bincount(labels_R, minlength=n_classes)
    present = np.flatnonzero(counts_K)
    per_class = int(counts_K[present].min())
    if at_most is not None:
        per_class = max(1, min(per_class, at_most // len(present)))
    order = rng.permutation(len(labels_R))
    grouped = order[np.argsort(labels_R[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts_K)])[present]
    drawn = np.concatenate([grouped[start : start + per_class] for start in starts])
    return rng.permutation(drawn), per_class, np.flatnonzero(counts_K == 0).tolist()
