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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.selection.blas_threads import threads_for
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.discriminant import Classifier, ClassSums, Floats, discriminant
from shardsieve.selection.neighbours import Neighbourhood, nearest
from shardsieve.selection.noise_model import (
    Foreign,
    NoiseModel,
    diffuse_transition,
    fit_noise_model,
    fit_transition,
    fit_with_foreign,
    image_dependence,
    log_likelihood,
    responsibilities,
)
from shardsieve.selection.out_of_class import first_guess, odds_of_one_vote
from shardsieve.selection.projection import View

Labels = npt.NDArray[np.int32]
# Rows to (B, K) logits of a probe that never saw them.
ProbeLogits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]]
BLOCK_ROWS = 16_384
ROUNDS = 4
# Passes until a class for foreign images is given up, and of all.
_TRIAL_PASSES = 4
PASSES = 2 * ROUNDS + 1 + _TRIAL_PASSES
# Every opinion starts with a little weight, or the fit would never try it.
_START_WEIGHT = 0.02
# How much the dependence of noise on the image changes the model, see `_combine`, and at most
# (chosen on random1, symmetric 0.4 and 0.8, asymmetric 0.4, instance 0.4: the estimated rates are
# then right within 2 points, p_clean within 0.02).
_STEEP, _MOST_CHANGE, _LAST_STEPS = 2.0, 0.25, 40
# The posterior is sharpened before it becomes the label of the next round (measured: 1 drifts).
_SHARPEN = 2
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
    points = _Points(points_Nd, label_N, fold_N, n_classes, n_folds, views)
    near = Neighbourhood(nearest(points_Nd, folder=folder), n_folds, n_classes, folder)
    advance(len(label_N))
    rows_at_once = min(len(label_N), BLOCK_ROWS) / n_folds
    with threads_for(2 * rows_at_once * points_Nd.shape[1] * n_classes):
        return _by_rounds(points, near, probe_logits, advance)


def _by_rounds(
    points: _Points,
    near: Neighbourhood,
    probe_logits: ProbeLogits | None,
    advance: Callable[[int], None],
) -> Cleaning:
    label_N, views = points.label_N, points.views
    rows = _fit_rows(len(label_N), points.n_classes)
    start_M = np.full(len(views), 0.5 / len(views))
    model = NoiseModel.start(start_M, diffuse_transition(points.n_classes))
    sums = _first_sums(points)
    model = fit_noise_model(_learn(points, sums, rows)[1], label_N[rows], model)
    advance(len(label_N))
    later = _later_rounds(points, near, rows, sums, model, advance, foreign=True)
    if not later:
        later = _later_rounds(points, near, rows, sums, model, advance, foreign=False)
    else:
        advance(_TRIAL_PASSES * len(label_N))
    others = _Others(near, probe_logits)
    opinions = [*(one.logits_VRC for one in later), others.logits(rows, points.fold_N[rows])]
    fits = [one.model for one in later]
    together = _combine(np.concatenate(opinions), label_N[rows], fits)
    likelihood = tuple(fit.log_likelihood for fit in (model, *fits, together))
    held_out = [one.classifiers for one in later]
    return _judge(points, held_out, together, others, likelihood, advance)


@dataclass(frozen=True, slots=True)
class _Round:
    """What came of one round.

    Attributes:
        classifiers: One per fold, which has not seen it.
        logits_VRC: What they say of the rows that models are fitted to.
        model: Fitted to that.
    """

    classifiers: list[Classifier]
    logits_VRC: npt.NDArray[np.float32]
    model: NoiseModel


def _later_rounds(
    points: _Points,
    near: Neighbourhood,
    rows: npt.NDArray[np.int64],
    sums: ClassSums,
    model: NoiseModel,
    advance: Callable[[int], None],
    *,
    foreign: bool,
) -> list[_Round]:
    """Does all rounds but the first.

    Args:
        points: The samples.
        near: Is told the posteriors.
        rows: That models are fitted to.
        sums: Of the first round.
        model: Of the first round.
        advance: Is told the rows of each pass.
        foreign: With a class for foreign images. It begins as a guess and needs a round to find
            itself; then the labels held out say whether it is of use.

    Returns:
        Nothing if it is of none.
    """
    label_R, n_samples = points.label_N[rows], len(points.label_N)
    sums = _relabelled_sums(points, sums, model, near, guess=foreign)
    if foreign:
        model = replace(model, foreign=Foreign(0.0, points.given_K))
    done: list[_Round] = []
    while True:
        advance(n_samples)
        classifiers, logits_VRC = _learn(points, sums, rows)
        if foreign and len(done) == 1:
            found = fit_with_foreign(logits_VRC, label_R, model)
            if found is None:
                advance(n_samples)
                return []
            model = found
        else:
            model = fit_noise_model(logits_VRC, label_R, model)
        done.append(_Round(classifiers, logits_VRC, model))
        advance(n_samples)
        if len(done) == ROUNDS - 1:
            return done
        sums = _relabelled_sums(points, sums, model, near)


def _learn(
    points: _Points, sums: ClassSums, rows: npt.NDArray[np.int64]
) -> tuple[list[Classifier], npt.NDArray[np.float32]]:
    """Returns a classifier per fold that has not seen it, and (V, R, C) what they say of `rows`."""
    folds = range(points.n_folds)
    classifiers = [discriminant(*sums.without(fold, fold), points.views) for fold in folds]
    return classifiers, _opinions(points, classifiers, rows)


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


@dataclass(frozen=True, slots=True)
class _Points:
    """The projected samples, read in blocks."""

    points_Nd: npt.NDArray[np.floating]
    label_N: Labels
    fold_N: npt.NDArray[np.int8]
    n_classes: int
    n_folds: int
    views: tuple[View, ...]

    @property
    def given_K(self) -> npt.NDArray[np.float64]:
        """Share of the samples that is given each label."""
        return np.bincount(self.label_N, minlength=self.n_classes) / len(self.label_N)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.int64], Floats]]:
        """Yields fold, rows of this fold and their points."""
        for start in range(0, len(self.label_N), BLOCK_ROWS):
            block_Bd = self.points_Nd[start : start + BLOCK_ROWS].astype(np.float32)
            fold_B = self.fold_N[start : start + BLOCK_ROWS]
            for fold in range(self.n_folds):
                mine = np.flatnonzero(fold_B == fold)
                if len(mine):
                    yield fold, start + mine, block_Bd[mine]


def _first_sums(points: _Points) -> ClassSums:
    """Class sums of the labels as given: the same whatever fold is held out."""
    n_folds, n_classes = points.n_folds, points.n_classes
    one = ClassSums.empty(1, n_folds, n_classes, points.points_Nd.shape[1])
    for fold, rows, points_Bd in points.blocks():
        given_BK = np.zeros((len(rows), 1, n_classes), np.float32)
        given_BK[np.arange(len(rows)), 0, points.label_N[rows]] = 1
        one.add(fold, points_Bd, given_BK)
    return ClassSums(
        np.repeat(one.sum_MFKd, n_folds, axis=0), np.repeat(one.count_MFK, n_folds, axis=0)
    )


def _relabelled_sums(
    points: _Points, sums: ClassSums, model: NoiseModel, near: Neighbourhood, *, guess: bool = False
) -> ClassSums:
    """Class sums of the next round: each sample counts by its sharpened posterior.

    Under held-out fold f, a sample of fold g is judged by the classifier that saw neither f nor g.

    Args:
        points: The samples.
        sums: Of this round.
        model: Of this round.
        near: Is told the posteriors.
        guess: Begin a class for foreign images, by the labels of the neighbours.
    """
    folds = range(points.n_folds)
    judges = {
        (held_out, fold): discriminant(*sums.without(held_out, held_out, fold), points.views)
        for held_out in folds
        for fold in folds
        if fold != held_out
    }
    odds_KK = odds_of_one_vote(model.transition_KK, points.given_K)
    n_true = sums.count_MFK.shape[2] + guess
    fresh = ClassSums.empty(points.n_folds, points.n_folds, n_true, points.points_Nd.shape[1])
    for fold, rows, points_Bd in points.blocks():
        weight_BMC = np.zeros((len(rows), points.n_folds, n_true), np.float32)
        for held_out in folds:
            if held_out == fold:
                continue
            posterior_BC = responsibilities(
                model.probabilities(judges[held_out, fold].logits(points_Bd)),
                points.label_N[rows],
                model.rows_CK,
            )
            sharp_BC = posterior_BC**_SHARPEN
            sharp_BC /= sharp_BC.sum(1, keepdims=True)
            if guess:
                votes_BK = near.label_votes(rows, points.label_N, points.fold_N, (held_out, fold))
                foreign_B1 = first_guess(votes_BK, odds_KK)[:, None]
                sharp_BC = np.hstack([sharp_BC * (1 - foreign_B1), foreign_B1])
            weight_BMC[:, held_out] = sharp_BC
        fresh.add(fold, points_Bd, weight_BMC)
        near.remember(rows, weight_BMC)
    return fresh


def _opinions(
    points: _Points, classifiers: list[Classifier], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns (V, R, C) logits of classifiers, one per fold, that never saw the rows."""
    n_true = classifiers[0].bias_VK.shape[1]
    out = np.empty((len(points.views), len(rows), n_true), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        piece = rows[start : start + BLOCK_ROWS]
        points_Bd = points.points_Nd[piece].astype(np.float32)
        for fold in range(points.n_folds):
            mine = np.flatnonzero(points.fold_N[piece] == fold)
            out[:, start + mine] = classifiers[fold].logits(points_Bd[mine])
    return out


def _judge(
    points: _Points,
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
