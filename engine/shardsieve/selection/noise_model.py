"""Which class a sample is of, given several opinions and a label that may be wrong.

P(given = j | x) = sum over i of P(i | x) T[i, j]: P from a weighted sum of logits, T the transition
matrix. Both are fitted to labels that none of the logits have seen, so that their likelihood says
how good they are although every label may be wrong.

Shapes: M logits per sample and class, N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

# Added to counts of which there may be none: half a sample (Jeffreys).
_HALF = 0.5
# Samples per class that even noise may weigh as a prior of the transition matrix, and the steps of
# the fits that choose between them. Beside it every row has so many samples spread over all
# classes: without them a class that was left out once would never come back.
_MASSES, _MASS_STEPS, _SPREAD = (0.0, 50.0, 500.0, 5000.0), 10, 5.0
# Labels for each entry of the transition matrix from which it needs no such prior, which would do
# harm: where noise follows the image, a fit that is even takes it for doubt about the images.
_ENOUGH = 20
# The even noise is never none: what looks like doubt about the images may be noise.
_MOST_KEPT = 0.98
_LEAST = 1e-300
# Of L-BFGS-B; the logarithms of T start and stay within these.
_STEPS, _LEAST_START, _WIDEST = 60, 1e-4, 14.0


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Weights of the opinions and the transition matrix.

    Attributes:
        weight_M: (M,) f64 >= 0, of each set of logits.
        transition_KK: (K, K) f64, P(given = column | true = row).
        log_likelihood: Mean log P(given | x), nats.
        prior_KK: (K, K) f64, pseudo-counts that T was fitted with.
        exponent: Of the posterior, in (0, 1]: below 1 it is less sure.
    """

    weight_M: npt.NDArray[np.float64]
    transition_KK: npt.NDArray[np.float64]
    log_likelihood: float
    prior_KK: npt.NDArray[np.float64]
    exponent: float = 1.0

    @classmethod
    def start(
        cls, weight_M: npt.NDArray[np.float64], transition_KK: npt.NDArray[np.float64]
    ) -> NoiseModel:
        """Returns where a fit begins."""
        return cls(weight_M, transition_KK, -np.inf, np.full_like(transition_KK, _HALF))


def diffuse_transition(n_classes: int, kept: float = 0.5) -> npt.NDArray[np.float64]:
    """Returns a matrix to start from: `kept` on the diagonal, the rest spread evenly."""
    if n_classes == 1:
        return np.ones((1, 1))
    rest = (1 - kept) / (n_classes - 1)
    return np.full((n_classes, n_classes), rest) + (kept - rest) * np.eye(n_classes)


def class_probabilities(
    logits_MNK: npt.NDArray[np.floating], weight_M: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns (N, K) P(i | x): softmax of the weighted sum of logits."""
    total_NK = np.tensordot(weight_M, logits_MNK, 1)
    total_NK -= total_NK.max(1, keepdims=True)
    np.exp(total_NK, out=total_NK)
    total_NK /= total_NK.sum(1, keepdims=True)
    return total_NK


def responsibilities(
    probability_NK: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    transition_KK: npt.NDArray[np.float64],
    exponent: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Returns (N, K) P(true = i | x, given): proportional to (P(i | x) T[i, given])^exponent."""
    joint_NK = probability_NK * transition_KK.T[label_N]
    joint_NK /= np.maximum(joint_NK.sum(1, keepdims=True), _LEAST)
    if exponent != 1:
        joint_NK **= exponent
        joint_NK /= np.maximum(joint_NK.sum(1, keepdims=True), _LEAST)
    return joint_NK


def fit_transition(
    probability_NK: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    start_KK: npt.NDArray[np.float64],
    steps: int,
    prior_KK: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Estimates T by expectation maximisation with P(i | x) held fixed.

    Args:
        probability_NK: P(i | x).
        label_N: Given labels.
        start_KK: T to begin with.
        steps: Of the iteration.
        prior_KK: Pseudo-counts added to those of every step.
    """
    n_classes = len(start_KK)
    order = np.argsort(label_N, kind="stable")
    edges = np.searchsorted(label_N[order], np.arange(n_classes + 1))
    grouped_NK, grouped_N = probability_NK[order], label_N[order]
    transition_KK = start_KK
    for _ in range(steps):
        posterior_NK = responsibilities(grouped_NK, grouped_N, transition_KK)
        counts_KK = prior_KK.copy()
        for given in range(n_classes):
            counts_KK[:, given] += posterior_NK[edges[given] : edges[given + 1]].sum(0)
        transition_KK = counts_KK / counts_KK.sum(1, keepdims=True)
    return transition_KK


def fit_noise_model(
    logits_MNK: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.integer],
    start: NoiseModel,
) -> NoiseModel:
    """Fits weights and transition matrix to labels that the logits have not seen.

    Both at once by L-BFGS-B on the likelihood, T behind a softmax per row (turning about between
    the two converges far more slowly). Weights are not negative, so that p_clean rises with every
    opinion.

    Few samples do not say which class is taken for which: T is drawn towards noise that is the same
    for all classes (`_prior`), as hard as predicts labels best that it has not seen.
    """
    n_opinions, n_samples, n_classes = logits_MNK.shape
    even, prior_KK = _prior(logits_MNK, label_N, start)
    given_NK = np.zeros((n_samples, n_classes))
    given_NK[np.arange(n_samples), label_N] = 1

    def cost(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        transition_KK = _rows(values[n_opinions:], n_classes)
        probability_NK = class_probabilities(logits_MNK, values[:n_opinions])
        joint_NK = probability_NK * transition_KK.T[label_N]
        evidence_N = np.maximum(joint_NK.sum(1), _LEAST)
        # d log P(given | x) / d logit = P(true | x, given) - P(true | x)
        posterior_NK = joint_NK / evidence_N[:, None]
        pull_NK = posterior_NK - probability_NK
        slope_M = [np.vdot(pull_NK, logits_NK) for logits_NK in logits_MNK]
        counts_KK = posterior_NK.T @ given_NK + prior_KK
        slope_KK = counts_KK - counts_KK.sum(1, keepdims=True) * transition_KK
        value = np.log(evidence_N).sum()
        value += np.vdot(prior_KK, np.log(np.maximum(transition_KK, _LEAST)))
        return -value / n_samples, -np.concatenate([slope_M, slope_KK.ravel()]) / n_samples

    # Where the prior outweighs the samples of a class, the fit can only end near it. Elsewhere it
    # must not begin there: noise that is far from even has another optimum.
    begin = even if prior_KK.sum() > n_samples else start
    found = minimize(
        cost,
        np.concatenate(
            [begin.weight_M, np.log(np.maximum(begin.transition_KK, _LEAST_START)).ravel()]
        ),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * n_opinions + [(-_WIDEST, _WIDEST)] * n_classes**2,
        options={"maxiter": _STEPS},
    ).x
    weight_M, transition_KK = found[:n_opinions], _rows(found[n_opinions:], n_classes)
    likelihood = log_likelihood(logits_MNK, label_N, weight_M, transition_KK)
    return NoiseModel(weight_M, transition_KK, likelihood, prior_KK)


def _prior(
    logits_MNK: npt.NDArray[np.floating], label_N: npt.NDArray[np.integer], start: NoiseModel
) -> tuple[NoiseModel, npt.NDArray[np.float64]]:
    """Fits noise that is the same for all classes, and weighs it as a prior.

    A label is kept with one probability for all, else drawn by how often each is given. The weight
    is the one with which T predicts each label best when it is fitted without it.

    Returns:
        The even model, or the start where there are labels enough; (K, K) pseudo-counts.
    """
    spread_KK = np.full_like(start.transition_KK, _SPREAD / len(start.transition_KK))
    if len(label_N) >= _ENOUGH * spread_KK.size:
        return start, spread_KK
    even = _fit_evenly(logits_MNK, label_N, start)
    probability_NK = class_probabilities(logits_MNK, even.weight_M)
    priors = [spread_KK + mass * even.transition_KK for mass in _MASSES]
    return even, max(priors, key=lambda prior_KK: _left_out(probability_NK, label_N, prior_KK))


def _left_out(
    probability_NK: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    prior_KK: npt.NDArray[np.float64],
) -> float:
    """Returns the summed log P(given | x), each under counts without the sample's own part."""
    start_KK = diffuse_transition(len(prior_KK))
    transition_KK = fit_transition(probability_NK, label_N, start_KK, _MASS_STEPS, prior_KK)
    posterior_NK = responsibilities(probability_NK, label_N, transition_KK)
    counts_KK = prior_KK.copy()
    np.add.at(counts_KK.T, label_N, posterior_NK)
    given_NK = counts_KK.T[label_N] - posterior_NK
    given_NK /= counts_KK.sum(1) - posterior_NK
    evidence_N = np.einsum("nk,nk->n", probability_NK, given_NK)
    return float(np.log(np.maximum(evidence_N, _LEAST)).sum())


def _fit_evenly(
    logits_MNK: npt.NDArray[np.floating], label_N: npt.NDArray[np.integer], start: NoiseModel
) -> NoiseModel:
    n_opinions, n_samples, n_classes = logits_MNK.shape
    share_K = (np.bincount(label_N, minlength=n_classes) + _HALF) / (n_samples + _HALF * n_classes)
    share_N, own = share_K[label_N], (np.arange(n_samples), label_N)

    def cost(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        kept = float(expit(values[-1]))
        probability_NK = class_probabilities(logits_MNK, values[:-1])
        agree_N = probability_NK[own]
        evidence_N = np.maximum(kept * agree_N + (1 - kept) * share_N, _LEAST)
        posterior_NK = probability_NK * ((1 - kept) * share_N / evidence_N)[:, None]
        posterior_NK[own] += kept * agree_N / evidence_N
        posterior_NK -= probability_NK
        slope_M = [np.vdot(posterior_NK, logits_NK) for logits_NK in logits_MNK]
        slope = kept * (1 - kept) * ((agree_N - share_N) / evidence_N).sum()
        return -np.log(evidence_N).sum() / n_samples, -np.array([*slope_M, slope]) / n_samples

    found = minimize(
        cost,
        np.append(start.weight_M, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * n_opinions + [(-_WIDEST, _WIDEST)],
        options={"maxiter": _STEPS},
    ).x
    kept = min(float(expit(found[-1])), _MOST_KEPT)
    return NoiseModel.start(found[:-1], kept * np.eye(n_classes) + (1 - kept) * share_K)


def image_dependence(
    probability_NK: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    transition_KK: npt.NDArray[np.float64],
) -> float:
    """Says how far noise depends on the image, beyond its class.

    The model has one noise rate per class. If that is so, then labels contradict the surest samples
    as often as it says; people err on them less, other noise may hit them more. The labels must be
    unseen by the probabilities.

    Returns:
        log(share of contradicted labels seen / expected) among the tenth with the largest P, nearer
        to 0 by its standard error; below 0 where the surest samples are wrong less often.
    """
    surest = np.argsort(-probability_NK.max(1), kind="stable")[: -(-len(label_N) // 10)]
    guess = probability_NK[surest].argmax(1)
    # Half a sample is added (Jeffreys): without noise both are about zero.
    seen = np.count_nonzero(guess != label_N[surest]) + _HALF
    agreeing = np.einsum("ri,ir->r", probability_NK[surest], transition_KK[:, guess])
    expected = float((1 - agreeing).sum()) + _HALF
    error = np.sqrt(max(1 - seen / (len(surest) + 2 * _HALF), 0) / seen)
    found = float(np.log(seen / expected))
    return float(np.copysign(max(abs(found) - error, 0.0), found))


def log_likelihood(
    logits_MNK: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.integer],
    weight_M: npt.NDArray[np.float64],
    transition_KK: npt.NDArray[np.float64],
) -> float:
    """Returns the mean log P(given | x), nats."""
    joint_NK = class_probabilities(logits_MNK, weight_M) * transition_KK.T[label_N]
    return float(np.log(np.maximum(joint_NK.sum(1), _LEAST)).mean())


def _rows(values: npt.NDArray[np.float64], n_classes: int) -> npt.NDArray[np.float64]:
    raw_KK = values.reshape(n_classes, n_classes)
    transition_KK = np.exp(raw_KK - raw_KK.max(1, keepdims=True))
    transition_KK /= transition_KK.sum(1, keepdims=True)
    return np.asarray(transition_KK)
