"""Planted label noise with a known truth: the field's kinds, and two that the TURN paper lacks.

Every function takes true labels (N,) and returns given labels; what was asked for is not what came
out, so print `realised_rate`. Shapes: N samples, K classes, P numbers that describe a sample.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def symmetric(labels_N: Labels, rate: float, n_classes: int, seed: int) -> Labels:
    """Gives `rate` of the samples a label drawn uniformly from all classes.

    The usual definition: the label drawn may be the right one, so that the share of wrong labels is
    rate x (1 - 1 / n_classes) in expectation. Print the realised rate.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels_N), round(rate * len(labels_N)), replace=False)
    noisy = labels_N.copy()
    noisy[chosen] = rng.integers(0, n_classes, len(chosen))
    return noisy


def asymmetric(labels_N: Labels, rate: float, n_classes: int, seed: int) -> Labels:
    """Turns `rate` of the samples of every class into the next class: y -> y + 1 mod K."""
    rng = np.random.default_rng(seed)
    noisy = labels_N.copy()
    for label in range(n_classes):
        rows = np.flatnonzero(labels_N == label)
        chosen = rng.choice(rows, round(rate * len(rows)), replace=False)
        noisy[chosen] = (label + 1) % n_classes
    return noisy


def class_dependent(labels_N: Labels, rate: float, n_classes: int, seed: int) -> Labels:
    """Draws labels from a random transition matrix whose mean rate is `rate`.

    Each class has a rate of its own (uniform between 0 and twice the mean, at most 0.7) and
    directions from a Dirichlet distribution with concentration 0.5, so that a few classes take most
    of the wrong labels of each.
    """
    transition_KK = random_transition(rate, n_classes, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng(seed)
    return _draw(transition_KK[labels_N], rng)


def random_transition(
    rate: float, n_classes: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns a (K, K) matrix P(given | true) with mean off-diagonal mass near `rate`."""
    rate_K = rng.uniform(0, 2 * rate, n_classes)
    rate_K = np.minimum(rate_K * rate / rate_K.mean(), 0.7)
    transition_KK = np.diag(1 - rate_K)
    for label in range(n_classes):
        others = np.delete(np.arange(n_classes), label)
        transition_KK[label, others] = rate_K[label] * rng.dirichlet(np.full(n_classes - 1, 0.5))
    return transition_KK


def instance_dependent(
    labels_N: Labels, rate: float, n_classes: int, seed: int, sample_NP: npt.NDArray[np.floating]
) -> Labels:
    """Flips hard-wired to what a sample looks like (part-dependent noise, Xia et al. 2020).

    A flip rate per sample from a normal distribution with mean `rate` and deviation 0.1, cut to
    [0, 1]; the direction from a random projection per true class of the sample's pixels or
    features, softmax over the other classes.

    Args:
        labels_N: True labels.
        rate: Mean flip rate.
        n_classes: K.
        seed: Of rates, projections and flips.
        sample_NP: (N, P) pixels or features; standardised here.
    """
    from scipy.stats import truncnorm

    rng = np.random.default_rng(seed)
    rate_N = truncnorm.rvs(
        -rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1, size=len(labels_N), random_state=rng
    )
    noisy = labels_N.copy()
    scaled_NP = (sample_NP - sample_NP.mean(0)) / (sample_NP.std(0) + 1e-6)
    for label in range(n_classes):
        rows = np.flatnonzero(labels_N == label)
        scores_RK = scaled_NP[rows] @ rng.standard_normal((sample_NP.shape[1], n_classes))
        scores_RK[:, label] = -np.inf
        weights_RK = np.exp(scores_RK - scores_RK.max(1, keepdims=True))
        weights_RK *= (rate_N[rows] / weights_RK.sum(1))[:, None]
        weights_RK[:, label] = 1 - rate_N[rows]
        noisy[rows] = _draw(weights_RK, rng)
    return noisy


def open_set(labels_N: Labels, foreign: tuple[int, ...], seed: int) -> tuple[Labels, Labels]:
    """Makes some classes foreign: their images get a label of the other classes at random.

    Returns:
        True labels with the other classes numbered anew from 0 and -1 for foreign images; given
        labels, which are right for every image that is not foreign.
    """
    rng = np.random.default_rng(seed)
    classes = [c for c in range(int(labels_N.max()) + 1) if c not in foreign]
    number = np.full(int(labels_N.max()) + 1, -1, np.int64)
    number[classes] = np.arange(len(classes))
    true = number[labels_N]
    given = np.where(true < 0, rng.integers(0, len(classes), len(true)), true)
    return true, given


def realised_rate(given_N: Labels, true_N: Labels) -> float:
    """Returns the share of labels that are wrong."""
    return float(np.mean(given_N != true_N))


def true_transition(given_N: Labels, true_N: Labels, n_classes: int) -> npt.NDArray[np.float64]:
    """Returns the realised (K, K) matrix P(given | true), foreign images left out."""
    inside = true_N >= 0
    counts_KK = np.zeros((n_classes, n_classes))
    np.add.at(counts_KK, (true_N[inside], given_N[inside]), 1)
    return counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)


def _draw(weights_NK: npt.NDArray[np.float64], rng: np.random.Generator) -> Labels:
    cumulative_NK = np.cumsum(weights_NK, axis=1)
    drawn = (rng.random((len(weights_NK), 1)) * cumulative_NK[:, -1:] > cumulative_NK).sum(1)
    return np.minimum(drawn, weights_NK.shape[1] - 1).astype(np.int64)
