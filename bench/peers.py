"""What a user could run instead, on the same cached features and the same held-out predictions.

Each method takes a `Case` and returns a `Verdict`. Probabilities are those of the probe that `best`
uses, too: trained with generalized cross entropy, out of fold.

Shapes: N samples, K classes, D features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


class Neighbours:
    """The 10 nearest other samples by cosine: the same for all labels of the same features."""

    def __init__(self, features_ND: Floats) -> None:
        self._features_ND = features_ND

    @cached_property
    def found(self) -> tuple[npt.NDArray[np.int64], float]:
        """(N, 10) rows, and the CPU seconds that they took."""
        start = time.process_time()
        return nearest(self._features_ND, 10), time.process_time() - start


@dataclass(frozen=True)
class Case:
    """One label set on one set of features.

    Attributes:
        features_ND: Cached features, f32, standardised.
        label_N: Given labels.
        n_classes: K.
        logits_NK: Of the probe, out of fold.
        loss_N: Cross entropy of the probe that saw the labels (TURN's).
        rate: True share of wrong labels, for the methods that are told.
        seed: Of everything random.
        neighbours: Of the features.
    """

    features_ND: Floats
    label_N: npt.NDArray[np.int64]
    n_classes: int
    logits_NK: Floats
    loss_N: npt.NDArray[np.float32]
    rate: float
    seed: int
    neighbours: Neighbours

    @cached_property
    def probability_NK(self) -> Floats:
        """Out of fold."""
        from scipy.special import softmax

        return np.asarray(softmax(self.logits_NK.astype(np.float64), axis=1))

    @property
    def neighbours_NJ(self) -> npt.NDArray[np.int64]:
        """(N, 10) nearest other samples by cosine, exact."""
        return self.neighbours.found[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a method says.

    Attributes:
        p_clean_N: The higher, the surer the label; a probability only if `calibrated`.
        keep_N: What it keeps.
        calibrated: Whether p_clean claims to be a probability.
        seconds: CPU seconds, without the probe.
    """

    p_clean_N: npt.NDArray[np.float64]
    keep_N: npt.NDArray[np.bool_]
    calibrated: bool
    seconds: float


def nearest(features_ND: Floats, n_neighbours: int) -> npt.NDArray[np.int64]:
    """Returns (N, J) nearest other rows by cosine of all features, exactly."""
    import faiss

    unit_ND = features_ND.astype(np.float32)
    unit_ND = unit_ND / np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), 1e-12)
    index = faiss.IndexFlatIP(unit_ND.shape[1])
    index.add(np.ascontiguousarray(unit_ND))
    found = index.search(np.ascontiguousarray(unit_ND), n_neighbours + 1)[1]
    # Its own row comes first, unless there are copies of it.
    own = found == np.arange(len(found))[:, None]
    own[~own.any(1), -1] = True
    return np.asarray(found[~own].reshape(len(found), n_neighbours))


def cleanlab_issues(case: Case) -> tuple[Any, Any, bool]:
    """Cleanlab's find_label_issues as it comes, ranked by normalised margin."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issue_N = find_label_issues(case.label_N, case.probability_NK, n_jobs=1)
    score_N = get_label_quality_scores(
        case.label_N, case.probability_NK, method="normalized_margin"
    )
    return score_N, ~issue_N, False


def cleanlab_confidence(case: Case) -> tuple[Any, Any, bool]:
    """Cleanlab's self-confidence ranking, cut where cleanlab counts label issues."""
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    score_N = get_label_quality_scores(case.label_N, case.probability_NK, method="self_confidence")
    wrong = num_label_issues(case.label_N, case.probability_NK)
    return score_N, _all_but(score_N, wrong), False


def simifeat_vote(case: Case) -> tuple[Any, Any, bool]:
    """SimiFeat-V (Zhu et al. 2022): the label must win the vote of the 10 nearest neighbours."""
    votes_NK = _votes(case)
    share_N = votes_NK[np.arange(len(votes_NK)), case.label_N] / votes_NK.sum(1)
    return share_N, votes_NK.argmax(1) == case.label_N, False


def simifeat_rank(case: Case) -> tuple[Any, Any, bool]:
    """SimiFeat-R: the same votes ranked per class, cut by an estimate of each class's rate.

    The rate per given class is Bayes' rule on HOC's transition matrix, as in their code.
    """
    votes_NK = _votes(case)
    share_N = votes_NK[np.arange(len(votes_NK)), case.label_N] / votes_NK.sum(1)
    transition_KK, prior_K = hoc(case)
    keep_N = np.ones(len(share_N), bool)
    for label in range(case.n_classes):
        mine = np.flatnonzero(case.label_N == label)
        joint_K = prior_K * transition_KK[:, label]
        wrong = 1 - joint_K[label] / max(joint_K.sum(), 1e-12)
        keep_N[mine] = _all_but(share_N[mine], round(wrong * len(mine)))
    return share_N, keep_N, False


def one_mixture(case: Case) -> tuple[Any, Any, bool]:
    """DivideMix's single mixture of all losses, min-max scaled, its settings; p > 0.5."""
    from sklearn.mixture import GaussianMixture

    scaled_N = (case.loss_N - case.loss_N.min()) / np.ptp(case.loss_N)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=case.seed).fit(
        scaled_N[:, None]
    )
    p_N = mixture.predict_proba(scaled_N[:, None])[:, mixture.means_.argmin()]
    return p_N, p_N > 0.5, True


def small_loss(case: Case) -> tuple[Any, Any, bool]:
    """Keeps the smallest losses; told how many labels are wrong."""
    return (
        -case.loss_N.astype(float),
        _all_but(-case.loss_N, round(case.rate * len(case.loss_N))),
        False,
    )


def disagreement(case: Case) -> tuple[Any, Any, bool]:
    """Keeps a sample when the probe, which never saw it, predicts its label."""
    p_N = case.probability_NK[np.arange(len(case.label_N)), case.label_N]
    return p_N, case.probability_NK.argmax(1) == case.label_N, True


PEERS: dict[str, Callable[[Case], tuple[Any, Any, bool]]] = {
    "cleanlab find_label_issues": cleanlab_issues,
    "cleanlab self-confidence": cleanlab_confidence,
    "SimiFeat vote": simifeat_vote,
    "SimiFeat rank": simifeat_rank,
    "one mixture (DivideMix)": one_mixture,
    "small loss, rate known": small_loss,
    "prediction disagreement": disagreement,
}
BY_NEIGHBOURS = (simifeat_vote, simifeat_rank)


def judge(method: Callable[[Case], tuple[Any, Any, bool]], case: Case) -> Verdict:
    """Runs one method and takes its time."""
    # Found before, for all who use them, and part of what each of these costs.
    searched_s = case.neighbours.found[1] if method in BY_NEIGHBOURS else 0.0
    start = time.process_time()
    score_N, keep_N, calibrated = method(case)
    seconds = time.process_time() - start + searched_s
    return Verdict(np.asarray(score_N, np.float64), np.asarray(keep_N, bool), calibrated, seconds)


def confident_joint(case: Case) -> npt.NDArray[np.float64]:
    """Returns cleanlab's estimate of P(given = column | true = row)."""
    from cleanlab.count import compute_confident_joint, estimate_latent

    joint = compute_confident_joint(case.label_N, case.probability_NK, calibrate=True)
    return np.asarray(estimate_latent(joint, case.label_N)[1]).T


def hoc(case: Case, *, steps: int = 400) -> tuple[Floats, Floats]:
    """HOC (Zhu et al. 2021): T and the prior from how labels of three nearest samples agree.

    Counts of first, second and third order over each sample and its two nearest neighbours are
    matched by gradient descent, with T and prior behind a softmax and the diagonal favoured at the
    start, as in the authors' code; the counts come from all samples instead of random draws.

    Returns:
        (K, K) T, (K,) prior.
    """
    import torch

    n_classes = case.n_classes
    one, two, three = (
        case.label_N,
        case.label_N[case.neighbours_NJ[:, 0]],
        case.label_N[case.neighbours_NJ[:, 1]],
    )
    counts = np.zeros((n_classes, n_classes, n_classes))
    np.add.at(counts, (one, two, three), 1)
    third = torch.tensor(counts / counts.sum(), dtype=torch.float32)
    second, first = third.sum(2), third.sum((1, 2))
    raw = torch.full((n_classes, n_classes), -2.0).fill_diagonal_(2.0).requires_grad_()
    prior_raw = torch.zeros(n_classes, requires_grad=True)
    optimiser = torch.optim.Adam([raw, prior_raw], lr=0.1)
    for _ in range(steps):
        transition, prior = raw.softmax(1), prior_raw.softmax(0)
        weighted = prior[:, None] * transition
        loss = (
            (weighted.sum(0) - first).square().sum().sqrt()
            + (weighted.T @ transition - second).square().sum().sqrt()
            + (torch.einsum("ka,kb,kc->abc", weighted, transition, transition) - third)
            .square()
            .sum()
            .sqrt()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return raw.softmax(1).detach().double().numpy(), prior_raw.softmax(0).detach().double().numpy()


def _votes(case: Case) -> Floats:
    votes_NK = np.zeros((len(case.label_N), case.n_classes))
    rows = np.repeat(np.arange(len(case.label_N)), case.neighbours_NJ.shape[1])
    np.add.at(votes_NK, (rows, case.label_N[case.neighbours_NJ].reshape(-1)), 1)
    return votes_NK


def _all_but(score_N: Floats, n_removed: int) -> npt.NDArray[np.bool_]:
    keep_N = np.ones(len(score_N), bool)
    keep_N[np.argsort(score_N, kind="stable")[:n_removed]] = False
    return keep_N
