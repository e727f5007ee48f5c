"""The recipe `best`: the posterior under a transition matrix, judged by what saw other rows only.

Every row is judged by classifiers that were trained on other folds only, through all rounds: for
each fold that is held out, the other folds clean their own labels among themselves (each by
classifiers that saw neither it nor the fold that is held out). So the likelihood of the labels held
out is honest. It sets the weights of all opinions, the temperature, and the transition matrix, and
it decides how much relabelling is too much.

Shapes: N samples, K classes, C with the foreign one (see `noise_model`), F folds, V views,
M opinions, d axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.selection.blas_threads import threads_for
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.discriminant import Classifier, Floats
from shardsieve.selection.neighbours import Neighbourhood, nearest
from shardsieve.selection.noise_fit import fit_noise_model
from shardsieve.selection.noise_model import (
    NoiseModel,
    diffuse_transition,
    fit_transition,
    image_dependence,
    log_likelihood,
    responsibilities,
)
from shardsieve.selection.projection import View
from shardsieve.selection.rounds import (
    BLOCK_ROWS,
    TRIAL_PASSES,
    Labels,
    Points,
    first_sums,
    later_rounds,
    learn,
)

# Rows to (B, K) logits of a probe that never saw them.
ProbeLogits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]]
# Every opinion starts with a little weight, or the fit would never try it.
_START_WEIGHT = 0.02
# How much the dependence of noise on the image changes the model, see `_combine`, and at most
# (chosen on random1, symmetric 0.4 and 0.8, asymmetric 0.4, instance 0.4: the estimated rates are
# then right within 2 points, p_clean within 0.02).
_STEEP, _MOST_CHANGE, _LAST_STEPS = 2.0, 0.25, 40
# Rows that weights and transition matrix are fitted to.
_FIT_ROWS, _FIT_VALUES = 40_000, 1_000_000


def fold_of(n_samples: int, n_folds: int, seed: int) -> npt.NDArray[np.int8]:
    """Deals the samples out to folds of equal size at random; (N,) i8."""
    dealt = np.random.default_rng([seed, 1]).permutation(n_samples) % n_folds
    return dealt.astype(np.int8)


def select_best(
    points_Nd: npt.NDArray[np.floating],
    views: tuple[View, ...],
    label_N: Labels,
    n_classes: int,
    fold_N: npt.NDArray[np.int8],
    *,
    probe_logits: ProbeLogits | None,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Cleaning:
    """Judges every label by classifiers that have not seen it.

    Args:
        points_Nd: (N, d) projected features, may be mapped from a file: read in blocks.
        views: Of the projection.
        label_N: (N,) given labels in [0, n_classes).
        n_classes: K.
        fold_N: (N,) fold of each sample, see `fold_of`; at least 3 folds.
        probe_logits: Gives (B, K) logits of rows by a probe that was trained without their folds;
            None leaves this opinion out.
        folder: Neighbours and their votes are mapped from files here; None keeps them in memory.
        advance: Called with the number of rows of each pass, `PASSES` x N in all.

    Raises:
        ValueError: There are fewer than 3 folds.
    """
    n_folds = int(fold_N.max()) + 1
    if n_folds < 3:
        raise ValueError(f"{n_folds} folds: two are left out at once, so at least 3 are needed")
    points = Points(points_Nd, label_N, fold_N, n_classes, n_folds, views)
    near = Neighbourhood(nearest(points_Nd, folder=folder), n_folds, n_classes, folder)
    advance(len(label_N))
    rows_at_once = min(len(label_N), BLOCK_ROWS) / n_folds
    with threads_for(2 * rows_at_once * points_Nd.shape[1] * n_classes):
        return _by_rounds(points, near, probe_logits, advance)


def _by_rounds(
    points: Points,
    near: Neighbourhood,
    probe_logits: ProbeLogits | None,
    advance: Callable[[int], None],
) -> Cleaning:
    label_N, views = points.label_N, points.views
    rows = _fit_rows(len(label_N), points.n_classes)
    start_M = np.full(len(views), 0.5 / len(views))
    model = NoiseModel.start(start_M, diffuse_transition(points.n_classes))
    sums = first_sums(points)
    model = fit_noise_model(learn(points, sums, rows)[1], label_N[rows], model)
    advance(len(label_N))
    later = later_rounds(points, near, rows, sums, model, advance, foreign=True)
    if not later:
        later = later_rounds(points, near, rows, sums, model, advance, foreign=False)
    else:
        advance(TRIAL_PASSES * len(label_N))
    others = _Others(near, probe_logits)
    opinions = [*(one.logits_VRC for one in later), others.logits(rows, points.fold_N[rows])]
    fits = [one.model for one in later]
    together = _combine(np.concatenate(opinions), label_N[rows], fits)
    likelihood = tuple(fit.log_likelihood for fit in (model, *fits, together))
    held_out = [one.classifiers for one in later]
    return _judge(points, held_out, together, others, likelihood, advance)


@dataclass(frozen=True, slots=True)
class _Others:
    """Opinions beside the discriminants', the same in all rounds."""

    near: Neighbourhood
    probe: ProbeLogits | None

    @property
    def names(self) -> tuple[str, ...]:
        return ("neighbours",) if self.probe is None else ("neighbours", "probe")

    def logits(
        self, rows: npt.NDArray[np.int64], fold_B: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        """Returns (1 or 2, B, C)."""
        told = [self.near.logits(rows, fold_B)]
        if self.probe is not None:
            logits_BK = self.probe(rows).astype(np.float32)
            n_foreign = told[0].shape[1] - logits_BK.shape[1]
            # A probe knows K classes only; between them it says neither yes nor no.
            mean_B1 = logits_BK.mean(1, keepdims=True)
            told.append(np.hstack([logits_BK, np.repeat(mean_B1, n_foreign, 1)]))
        return np.stack(told)


def _combine(
    logits_MRC: npt.NDArray[np.float32], label_R: Labels, fits: list[NoiseModel]
) -> NoiseModel:
    """Fits the opinions of all rounds but the first together.

    The first round learned the labels as they are. Where noise depends on the image it has learned
    the noise, too, which the likelihood of equally noisy labels rewards. For the same reason the
    fit leaves the probabilities too soft: what is noise looks like doubt about the image. They are
    sharpened by as much as noise depends on the image, and T is fitted to them anew. Where wrong
    labels are rarest on the surest images, as people's are, the rest of the images have more of
    them than T says, so that the posterior of each is too sure: it is softened by as much. A class
    for foreign images takes up what depends on the image: then neither is done.
    """
    leader = int(np.argmax([fit.log_likelihood for fit in fits]))
    start_M = np.full(len(logits_MRC), _START_WEIGHT)
    n_views = len(fits[leader].weight_M)
    start_M[leader * n_views : (leader + 1) * n_views] += fits[leader].weight_M
    model = fit_noise_model(logits_MRC, label_R, replace(fits[leader], weight_M=start_M))
    probability_RC = model.probabilities(logits_MRC)
    model = _with_transition(model, probability_RC, label_R)
    if model.foreign is not None:
        return model
    dependence = image_dependence(probability_RC, label_R, model.transition_KK)
    change = float(np.clip(_STEEP * dependence, -_MOST_CHANGE, _MOST_CHANGE))
    model = replace(model, weight_M=(1 + abs(change)) * model.weight_M, exponent=1 + min(change, 0))
    return _with_transition(model, model.probabilities(logits_MRC), label_R)


def _with_transition(
    model: NoiseModel, probability_RC: npt.NDArray[np.float64], label_R: Labels
) -> NoiseModel:
    transition_KK = fit_transition(
        probability_RC, label_R, model.rows_CK, _LAST_STEPS, model.prior_KK
    )
    model = replace(model, transition_KK=transition_KK)
    likelihood = log_likelihood(probability_RC, label_R, model.rows_CK)
    return replace(model, log_likelihood=likelihood)


def _fit_rows(n_samples: int, n_classes: int) -> npt.NDArray[np.int64]:
    n_rows = min(n_samples, _FIT_ROWS, max(10_000, _FIT_VALUES // n_classes))
    if n_rows == n_samples:
        return np.arange(n_samples)
    return np.sort(np.random.default_rng(0).choice(n_samples, n_rows, replace=False))


def _judge(
    points: Points,
    held_out: list[list[Classifier]],
    model: NoiseModel,
    others: _Others,
    likelihood: tuple[float, ...],
    advance: Callable[[int], None],
) -> Cleaning:
    n_samples, n_classes = len(points.label_N), points.n_classes
    p_clean_N = np.empty(n_samples)
    margin_N, agree_N, confidence_N, near_N, distance_N, foreign_N = np.zeros(
        (6, n_samples), np.float32
    )
    suggested_N = np.empty(n_samples, np.int32)
    joint_KK = np.zeros((n_classes, n_classes))
    for fold, rows, points_Bd in points.blocks():
        told = [judges[fold].logits(points_Bd) for judges in held_out]
        logits_MBC = np.concatenate([*told, others.logits(rows, np.full(len(rows), fold))])
        given_B = points.label_N[rows]
        probability_BC = model.probabilities(logits_MBC)
        posterior_BC = responsibilities(probability_BC, given_B, model.rows_CK, model.exponent)
        foreign_N[rows] = posterior_BC[:, n_classes:].sum(1)
        probability_BK, posterior_BK = probability_BC[:, :n_classes], posterior_BC[:, :n_classes]
        own = np.arange(len(rows)), given_B
        p_clean_N[rows] = posterior_BK[own]
        suggested_N[rows] = posterior_BK.argmax(1)
        confidence_N[rows] = posterior_BK.max(1)
        agree_N[rows] = probability_BK[own]
        np.add.at(joint_KK.T, given_B, posterior_BK)
        probability_BK[own] = 0
        margin_N[rows] = agree_N[rows] - probability_BK.max(1)
        near_N[rows] = others.near.agreement(rows, points.label_N)
        distance_N[rows] = _distance(points_Bd, held_out[-1][fold].means_Kd[:n_classes])
        advance(len(rows))
    names = [
        f"discriminant on {len(view)} axes, round {turn}"
        for turn in range(1, 1 + len(held_out))
        for view in points.views
    ]
    return Cleaning(
        p_clean_N,
        margin_N,
        agree_N,
        suggested_N,
        confidence_N,
        near_N,
        distance_N / np.median(distance_N),
        foreign_N,
        joint_KK / np.maximum(joint_KK.sum(1, keepdims=True), np.finfo(float).tiny),
        model.weight_M,
        (*names, *others.names),
        likelihood,
        np.array([1 - p_clean_N[points.fold_N == fold].mean() for fold in range(points.n_folds)]),
    )


def _distance(points_Bd: Floats, means_Kd: Floats) -> Floats:
    """Returns (B,) squared distance to the nearest class centre, per axis."""
    cross_BK = points_Bd @ means_Kd.T
    nearest_B = (np.einsum("kd,kd->k", means_Kd, means_Kd) - 2 * cross_BK).min(1)
    squared_B = np.einsum("bd,bd->b", points_Bd, points_Bd) + nearest_B
    return np.maximum(squared_B, 0) / points_Bd.shape[1]
