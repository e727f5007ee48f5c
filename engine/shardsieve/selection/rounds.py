"""The rounds of the recipe `best`: discriminants of class sums, and labels by their posterior.

A fold that is held out is never seen by what judges it, through all rounds (see `best`).

Shapes: N samples, K classes, C with the foreign one (see `noise_model`), F folds, V views, B rows
of a block, R rows that models are fitted to, d axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shardsieve.selection.discriminant import Classifier, ClassSums, Floats, discriminant
from shardsieve.selection.neighbours import Neighbourhood
from shardsieve.selection.noise_fit import fit_noise_model, fit_with_foreign
from shardsieve.selection.noise_model import Foreign, NoiseModel, responsibilities
from shardsieve.selection.out_of_class import first_guess, odds_of_one_vote
from shardsieve.selection.projection import View

Labels = npt.NDArray[np.int32]
BLOCK_ROWS = 16_384
ROUNDS = 4
# Passes until a class for foreign images is given up, and of all.
TRIAL_PASSES = 4
PASSES = 2 * ROUNDS + 1 + TRIAL_PASSES
# The posterior is sharpened before it becomes the label of the next round (measured: 1 drifts).
_SHARPEN = 2


@dataclass(frozen=True, slots=True)
class Points:
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


def first_sums(points: Points) -> ClassSums:
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
    points: Points, sums: ClassSums, model: NoiseModel, near: Neighbourhood, *, guess: bool = False
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
    points: Points, classifiers: list[Classifier], rows: npt.NDArray[np.int64]
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


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one round.

    Attributes:
        classifiers: One per fold, which has not seen it.
        logits_VRC: What they say of the rows that models are fitted to.
        model: Fitted to that.
    """

    classifiers: list[Classifier]
    logits_VRC: npt.NDArray[np.float32]
    model: NoiseModel


def later_rounds(
    points: Points,
    near: Neighbourhood,
    rows: npt.NDArray[np.int64],
    sums: ClassSums,
    model: NoiseModel,
    advance: Callable[[int], None],
    *,
    foreign: bool,
) -> list[Round]:
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
    done: list[Round] = []
    while True:
        advance(n_samples)
        classifiers, logits_VRC = learn(points, sums, rows)
        if foreign and len(done) == 1:
            found = fit_with_foreign(logits_VRC, label_R, model)
            if found is None:
                advance(n_samples)
                return []
            model = found
        else:
            model = fit_noise_model(logits_VRC, label_R, model)
        done.append(Round(classifiers, logits_VRC, model))
        advance(n_samples)
        if len(done) == ROUNDS - 1:
            return done
        sums = _relabelled_sums(points, sums, model, near)


def learn(
    points: Points, sums: ClassSums, rows: npt.NDArray[np.int64]
) -> tuple[list[Classifier], npt.NDArray[np.float32]]:
    """Returns a classifier per fold that has not seen it, and (V, R, C) what they say of `rows`."""
    folds = range(points.n_folds)
    classifiers = [discriminant(*sums.without(fold, fold), points.views) for fold in folds]
    return classifiers, _opinions(points, classifiers, rows)
