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

# Added to every count of the transition matrix: half a sample (Jeffreys).
_PRIOR = 0.5
_LEAST = 1e-300
_ROUNDS, _FIRST_STEPS, _STEPS, _LINE_STEPS = 6, 15, 8, 8


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Weights of the opinions and the transition matrix.

    Attributes:
        weight_M: (M,) f64 >= 0, of each set of logits.
        transition_KK: (K, K) f64, P(given = column | true = row).
        log_likelihood: Mean log P(given | x), nats.
    """

    weight_M: npt.NDArray[np.float64]
    transition_KK: npt.NDArray[np.float64]
    log_likelihood: float


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
) -> npt.NDArray[np.float64]:
    """Returns (N, K) P(true = i | x, given): proportional to P(i | x) T[i, given]."""
    joint_NK = probability_NK * transition_KK.T[label_N]
    joint_NK /= np.maximum(joint_NK.sum(1, keepdims=True), _LEAST)
    return joint_NK


def fit_transition(
    probability_NK: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    start_KK: npt.NDArray[np.float64],
    steps: int,
) -> npt.NDArray[np.float64]:
    """Estimates T by expectation maximisation with P(i | x) held fixed."""
    n_classes = len(start_KK)
    order = np.argsort(label_N, kind="stable")
    edges = np.searchsorted(label_N[order], np.arange(n_classes + 1))
    grouped_NK, grouped_N = probability_NK[order], label_N[order]
    transition_KK = start_KK
    for _ in range(steps):
        posterior_NK = responsibilities(grouped_NK, grouped_N, transition_KK)
        counts_KK = np.full((n_classes, n_classes), _PRIOR)
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

    Turns about: T by expectation maximisation, the weights by L-BFGS-B on the likelihood. Weights
    are not negative, so that p_clean rises with every opinion.
    """
    weight_M, transition_KK = start.weight_M, start.transition_KK
    n_samples = len(label_N)

    def cost(weight_M: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        probability_NK = class_probabilities(logits_MNK, weight_M)
        joint_NK = probability_NK * transition_KK.T[label_N]
        evidence_N = np.maximum(joint_NK.sum(1), _LEAST)
        # d log P(given | x) / d logit = P(true | x, given) - P(true | x)
        pull_NK = joint_NK / evidence_N[:, None] - probability_NK
        slope_M = np.array([np.vdot(pull_NK, logits_NK) for logits_NK in logits_MNK])
        return -float(np.log(evidence_N).mean()), -slope_M / n_samples

    for turn in range(_ROUNDS):
        probability_NK = class_probabilities(logits_MNK, weight_M)
        steps = _STEPS if turn else _FIRST_STEPS
        transition_KK = fit_transition(probability_NK, label_N, transition_KK, steps)
        weight_M = minimize(
            cost,
            weight_M,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(weight_M),
            options={"maxiter": _LINE_STEPS},
        ).x
    return NoiseModel(weight_M, transition_KK, -cost(weight_M)[0])
