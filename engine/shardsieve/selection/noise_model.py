"""Which class a sample is of, given several opinions and a label that may be wrong.

P(given = j | x) = sum over i of P(i | x) T[i, j]: P from a weighted sum of logits, T the transition
matrix. Both are fitted to labels that none of the logits have seen, so that their likelihood says
how good they are although every label may be wrong.

Images that show none of the classes have a class of their own beside the K, the last, if the labels
are better predicted with it; their labels follow no rule.

Shapes: M logits per sample and class, N samples, K classes, C of them with the foreign one: K + 1
or K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Added to counts of which there may be none: half a sample (Jeffreys).
HALF = 0.5
LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Foreign:
    """The class of images that show none of the K.

    Attributes:
        bias: Added to its logit.
        given_K: (K,) f64, P(given | foreign): as often as each label is given at all.
    """

    bias: float
    given_K: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Weights of the opinions and the transition matrix.

    Attributes:
        weight_M: (M,) f64 >= 0, of each set of logits.
        transition_KK: (K, K) f64, P(given = column | true = row).
        log_likelihood: Mean log P(given | x), nats.
        prior_KK: (K, K) f64, pseudo-counts that T was fitted with.
        exponent: Of the posterior, in (0, 1]: below 1 it is less sure.
        foreign: None: every image shows one of the K classes.
    """

    weight_M: npt.NDArray[np.float64]
    transition_KK: npt.NDArray[np.float64]
    log_likelihood: float
    prior_KK: npt.NDArray[np.float64]
    exponent: float = 1.0
    foreign: Foreign | None = None

    @property
    def rows_CK(self) -> npt.NDArray[np.float64]:
        """P(given = column | true = row), the last row for foreign images where there are any."""
        if self.foreign is None:
            return self.transition_KK
        return np.vstack([self.transition_KK, self.foreign.given_K])

    def probabilities(self, logits_MNC: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Returns (N, C) P(i | x)."""
        bias = 0.0 if self.foreign is None else self.foreign.bias
        return class_probabilities(logits_MNC, self.weight_M, bias)

    @classmethod
    def start(
        cls, weight_M: npt.NDArray[np.float64], transition_KK: npt.NDArray[np.float64]
    ) -> NoiseModel:
        """Returns where a fit begins."""
        return cls(weight_M, transition_KK, -np.inf, np.full_like(transition_KK, HALF))


def diffuse_transition(n_classes: int, kept: float = 0.5) -> npt.NDArray[np.float64]:
    """Returns a matrix to start from: `kept` on the diagonal, the rest spread evenly."""
    if n_classes == 1:
        return np.ones((1, 1))
    rest = (1 - kept) / (n_classes - 1)
    return np.full((n_classes, n_classes), rest) + (kept - rest) * np.eye(n_classes)


def class_probabilities(
    logits_MNC: npt.NDArray[np.floating],
    weight_M: npt.NDArray[np.float64],
    bias: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Returns (N, C) P(i | x): softmax of the weighted sum of logits, `bias` added to the last."""
    total_NC = np.tensordot(weight_M, logits_MNC, 1)
    total_NC[:, -1] += bias
    total_NC -= total_NC.max(1, keepdims=True)
    np.exp(total_NC, out=total_NC)
    total_NC /= total_NC.sum(1, keepdims=True)
    return total_NC


def responsibilities(
    probability_NC: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    rows_CK: npt.NDArray[np.float64],
    exponent: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Returns (N, C) P(true = i | x, given): proportional to (P(i | x) T[i, given])^exponent."""
    joint_NC = probability_NC * rows_CK.T[label_N]
    joint_NC /= np.maximum(joint_NC.sum(1, keepdims=True), LEAST)
    if exponent != 1:
        joint_NC **= exponent
        joint_NC /= np.maximum(joint_NC.sum(1, keepdims=True), LEAST)
    return joint_NC


def fit_transition(
    probability_NC: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    start_CK: npt.NDArray[np.float64],
    steps: int,
    prior_KK: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Estimates T by expectation maximisation with P(i | x) held fixed.

    Args:
        probability_NC: P(i | x).
        label_N: Given labels.
        start_CK: T to begin with; a row for foreign images stays as it is.
        steps: Of the iteration.
        prior_KK: Pseudo-counts added to those of every step.

    Returns:
        (K, K).
    """
    n_classes = len(prior_KK)
    order = np.argsort(label_N, kind="stable")
    edges = np.searchsorted(label_N[order], np.arange(n_classes + 1))
    grouped_NC, grouped_N = probability_NC[order], label_N[order]
    rows_CK = start_CK.copy()
    for _ in range(steps):
        posterior_NC = responsibilities(grouped_NC, grouped_N, rows_CK)
        counts_KK = prior_KK.copy()
        for given in range(n_classes):
            mine = slice(edges[given], edges[given + 1])
            counts_KK[:, given] += posterior_NC[mine, :n_classes].sum(0)
        rows_CK[:n_classes] = counts_KK / counts_KK.sum(1, keepdims=True)
    return rows_CK[:n_classes]


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
    seen = np.count_nonzero(guess != label_N[surest]) + HALF
    agreeing = np.einsum("ri,ir->r", probability_NK[surest], transition_KK[:, guess])
    expected = float((1 - agreeing).sum()) + HALF
    error = np.sqrt(max(1 - seen / (len(surest) + 2 * HALF), 0) / seen)
    found = float(np.log(seen / expected))
    return float(np.copysign(max(abs(found) - error, 0.0), found))


def log_likelihood(
    probability_NC: npt.NDArray[np.float64],
    label_N: npt.NDArray[np.integer],
    rows_CK: npt.NDArray[np.float64],
) -> float:
    """Returns the mean log P(given | x), nats."""
    evidence_N = (probability_NC * rows_CK.T[label_N]).sum(1)
    return float(np.log(np.maximum(evidence_N, LEAST)).mean())
