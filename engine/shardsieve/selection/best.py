"""The recipe `best`: the posterior under a transition matrix, judged by what saw other rows only.

Every row is judged by classifiers that were trained on other folds only, through all rounds: for
each fold that is held out, the other folds clean their own labels among themselves (each by
classifiers that saw neither it nor the fold that is held out). So the likelihood of the labels held
out is honest. It sets the weights of all opinions, the temperature, and the transition matrix, and
it decides how much relabelling is too much.

Shapes: N samples, K classes, F folds, V views, M opinions, d axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.selection.blas_threads import threads_for
from shardsieve.selection.cleaning import Cleaning
from shardsieve.selection.discriminant import Classifier, ClassSums, Floats, discriminant
from shardsieve.selection.neighbours import Neighbourhood, nearest
from shardsieve.selection.noise_model import (
    NoiseModel,
    class_probabilities,
    diffuse_transition,
    fit_noise_model,
    fit_transition,
    image_dependence,
    log_likelihood,
    responsibilities,
)
from shardsieve.selection.projection import View

Labels = npt.NDArray[np.int32]
# Rows to (B, K) logits of a probe that never saw them.
ProbeLogits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]]
BLOCK_ROWS = 16_384
ROUNDS = 4
PASSES = 2 * ROUNDS + 1
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
    label_N, fold_N, views = points.label_N, points.fold_N, points.views
    n_folds, n_classes = points.n_folds, points.n_classes
    rows = _fit_rows(len(label_N), n_classes)
    held_out: list[list[Classifier]] = []
    opinions = []
    fits: list[NoiseModel] = []
    model = NoiseModel.start(np.full(len(views), 0.5 / len(views)), diffuse_transition(n_classes))
    sums = _first_sums(points)
    for turn in range(ROUNDS):
        held_out.append([discriminant(*sums.without(fold, fold), views) for fold in range(n_folds)])
        opinions.append(_opinions(points, held_out[-1:], rows))
        model = fit_noise_model(opinions[turn], label_N[rows], model)
        fits.append(model)
        advance(len(label_N))
        if turn + 1 < ROUNDS:
            sums = _relabelled_sums(points, sums, model, near)
            advance(len(label_N))
    others = _Others(near, probe_logits)
    opinions.append(others.logits(rows, fold_N[rows]))
    together = _combine(np.concatenate(opinions[1:]), label_N[rows], fits[1:])
    likelihood = tuple(fit.log_likelihood for fit in (*fits, together))
    return _judge(points, held_out[1:], together, others, likelihood, advance)


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
        """Returns (1 or 2, B, K)."""
        told = [self.near.logits(rows, fold_B)]
        if self.probe is not None:
            told.append(self.probe(rows).astype(np.float32))
        return np.stack(told)


def _combine(
    logits_MRK: npt.NDArray[np.float32], label_R: Labels, fits: list[NoiseModel]
) -> NoiseModel:
    """Fits the opinions of all rounds but the first together.

    The first round learned the labels as they are. Where noise depends on the image it has learned
    the noise, too, which the likelihood of equally noisy labels rewards. For the same reason the
    fit leaves the probabilities too soft: what is noise looks like doubt about the image. They are
    sharpened by as much as noise depends on the image, and T is fitted to them anew. Where wrong
    labels are rarest on the surest images, as people's are, the rest of the images have more of
    them than T says, so that the posterior of each is too sure: it is softened by as much.
    """
    leader = int(np.argmax([fit.log_likelihood for fit in fits]))
    start_M = np.full(len(logits_MRK), _START_WEIGHT)
    n_views = len(fits[leader].weight_M)
    start_M[leader * n_views : (leader + 1) * n_views] += fits[leader].weight_M
    start = NoiseModel.start(start_M, fits[leader].transition_KK)
    model = fit_noise_model(logits_MRK, label_R, start)
    probability_RK = class_probabilities(logits_MRK, model.weight_M)
    transition_KK = fit_transition(
        probability_RK, label_R, model.transition_KK, _LAST_STEPS, model.prior_KK
    )
    dependence = image_dependence(probability_RK, label_R, transition_KK)
    change = float(np.clip(_STEEP * dependence, -_MOST_CHANGE, _MOST_CHANGE))
    weight_M = (1 + abs(change)) * model.weight_M
    transition_KK = fit_transition(
        class_probabilities(logits_MRK, weight_M),
        label_R,
        transition_KK,
        _LAST_STEPS,
        model.prior_KK,
    )
    likelihood = log_likelihood(logits_MRK, label_R, weight_M, transition_KK)
    return NoiseModel(
        weight_M, transition_KK, likelihood, model.prior_KK, exponent=1 + min(change, 0)
    )


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
    points: _Points, sums: ClassSums, model: NoiseModel, near: Neighbourhood
) -> ClassSums:
    """Class sums of the next round: each sample counts by its sharpened posterior.

    Under held-out fold f, a sample of fold g is judged by the classifier that saw neither f nor g.
    """
    n_folds, n_classes = points.n_folds, points.n_classes
    folds = range(n_folds)
    judges = {
        (held_out, fold): discriminant(*sums.without(held_out, held_out, fold), points.views)
        for held_out in folds
        for fold in folds
        if fold != held_out
    }
    fresh = ClassSums.empty(n_folds, n_folds, n_classes, points.points_Nd.shape[1])
    for fold, rows, points_Bd in points.blocks():
        weight_BMK = np.zeros((len(rows), n_folds, n_classes), np.float32)
        for held_out in folds:
            if held_out == fold:
                continue
            logits_VBK = judges[held_out, fold].logits(points_Bd)
            posterior_BK = responsibilities(
                class_probabilities(logits_VBK, model.weight_M),
                points.label_N[rows],
                model.transition_KK,
            )
            sharp_BK = posterior_BK**_SHARPEN
            weight_BMK[:, held_out] = sharp_BK / sharp_BK.sum(1, keepdims=True)
        fresh.add(fold, points_Bd, weight_BMK)
        near.remember(rows, weight_BMK)
    return fresh


def _opinions(
    points: _Points, held_out: list[list[Classifier]], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns (rounds x V, R, K) logits of classifiers that never saw the rows."""
    out = np.empty((len(held_out) * len(points.views), len(rows), points.n_classes), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        piece = rows[start : start + BLOCK_ROWS]
        points_Bd = points.points_Nd[piece].astype(np.float32)
        for fold in range(points.n_folds):
            mine = np.flatnonzero(points.fold_N[piece] == fold)
            logits = [classifiers[fold].logits(points_Bd[mine]) for classifiers in held_out]
            out[:, start + mine] = np.concatenate(logits)
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
    margin_N, agree_N, confidence_N, near_N, distance_N = np.empty((5, n_samples), np.float32)
    suggested_N = np.empty(n_samples, np.int32)
    joint_KK = np.zeros((n_classes, n_classes))
    for fold, rows, points_Bd in points.blocks():
        told = [judges[fold].logits(points_Bd) for judges in held_out]
        logits_MBK = np.concatenate([*told, others.logits(rows, np.full(len(rows), fold))])
        given_B = points.label_N[rows]
        probability_BK = class_probabilities(logits_MBK, model.weight_M)
        posterior_BK = responsibilities(
            probability_BK, given_B, model.transition_KK, model.exponent
        )
        own = np.arange(len(rows)), given_B
        p_clean_N[rows] = posterior_BK[own]
        suggested_N[rows] = posterior_BK.argmax(1)
        confidence_N[rows] = posterior_BK.max(1)
        agree_N[rows] = probability_BK[own]
        np.add.at(joint_KK.T, given_B, posterior_BK)
        probability_BK[own] = 0
        margin_N[rows] = agree_N[rows] - probability_BK.max(1)
        near_N[rows] = others.near.agreement(rows, points.label_N)
        distance_N[rows] = _distance(points_Bd, held_out[-1][fold].means_Kd)
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
