"""Fits a noise model to labels that none of its logits have seen.

Shapes: M logits per sample and class, N samples, K classes, C of them with the foreign one: K + 1
or K.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from shardsieve.selection.noise_model import (
    HALF,
    LEAST,
    NoiseModel,
    class_probabilities,
    diffuse_transition,
    fit_transition,
    log_likelihood,
    responsibilities,
)

# Samples per class that even noise may weigh as a prior of the transition matrix, and the steps of
# the fits that choose between them. Beside it every row has so many samples spread over all
# classes: without them a class that was left out once would never come back.
_MASSES, _MASS_STEPS, _SPREAD = (0.0, 50.0, 500.0, 5000.0), 10, 5.0
# Labels for each entry of the transition matrix from which it needs no such prior, which would do
# harm: where noise follows the image, a fit that is even takes it for doubt about the images.
_ENOUGH = 20
# The even noise is never none: what looks like doubt about the images may be noise.
_MOST_KEPT = 0.98
# Of L-BFGS-B; the logarithms of T start and stay within these.
_STEPS, _LEAST_START, _WIDEST = 60, 1e-4, 14.0
# What a class for foreign images must bring, in nats: in all, and for each image that it takes. On
# `cifar10n` and digits it brought 27 to 700 with 5 to 20 % of the images foreign (but once 2), 5 at
# most with none, whatever the labels.
_GAIN, _GAIN_PER_IMAGE = 10.0, 0.02
# From below it would not come back when the next round knows foreign images better.
_LEAST_BIAS = -4.0


def fit_noise_model(
    logits_MNC: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.integer],
    start: NoiseModel,
) -> NoiseModel:
    """Fits weights and transition matrix to labels that the logits have not seen.

    Both at once by L-BFGS-B on the likelihood, T behind a softmax per row (turning about between
    the two converges far more slowly). Weights are not negative, so that p_clean rises with every
    opinion.

    Few samples do not say which class is taken for which: T is drawn towards noise that is the same
    for all classes (`_prior`), as hard as predicts labels best that it has not seen.

    Args:
        logits_MNC: Of the K classes, and of the foreign one if `start` has it.
        label_N: Given labels.
        start: Where the fit begins.
    """
    n_samples, n_classes = len(label_N), len(start.transition_KK)
    n_opinions, foreign = len(logits_MNC), start.foreign
    even, prior_KK = _prior(logits_MNC[:, :, :n_classes], label_N, start)
    given_NK = np.zeros((n_samples, n_classes))
    given_NK[np.arange(n_samples), label_N] = 1
    n_first = n_opinions + (foreign is not None)

    def model_of(values: npt.NDArray[np.float64]) -> NoiseModel:
        transition_KK = _rows(values[n_first:], n_classes)
        own = None if foreign is None else replace(foreign, bias=float(values[n_opinions]))
        return NoiseModel(values[:n_opinions], transition_KK, -np.inf, prior_KK, foreign=own)

    def cost(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        model = model_of(values)
        probability_NC = model.probabilities(logits_MNC)
        joint_NC = probability_NC * model.rows_CK.T[label_N]
        evidence_N = np.maximum(joint_NC.sum(1), LEAST)
        # d log P(given | x) / d logit = P(true | x, given) - P(true | x)
        posterior_NC = joint_NC / evidence_N[:, None]
        pull_NC = posterior_NC - probability_NC
        slope_M = [np.vdot(pull_NC, logits_NC) for logits_NC in logits_MNC]
        slope_bias = [] if foreign is None else [pull_NC[:, -1].sum()]
        counts_KK = posterior_NC[:, :n_classes].T @ given_NK + prior_KK
        slope_KK = counts_KK - counts_KK.sum(1, keepdims=True) * model.transition_KK
        value = np.log(evidence_N).sum()
        value += np.vdot(prior_KK, np.log(np.maximum(model.transition_KK, LEAST)))
        slope = np.concatenate([slope_M, slope_bias, slope_KK.ravel()])
        return -value / n_samples, -slope / n_samples

    # Where the prior outweighs the samples of a class, the fit can only end near it. Elsewhere it
    # must not begin there: noise that is far from even has another optimum.
    begin = even if prior_KK.sum() > n_samples else start
    bias = [] if foreign is None else [foreign.bias]
    logs_KK = np.log(np.maximum(begin.transition_KK, _LEAST_START))
    found = minimize(
        cost,
        np.concatenate([begin.weight_M, bias, logs_KK.ravel()]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * n_opinions
        + [(_LEAST_BIAS, None)] * len(bias)
        + [(-_WIDEST, _WIDEST)] * n_classes**2,
        options={"maxiter": _STEPS},
    ).x
    model = model_of(found)
    probability_NC = model.probabilities(logits_MNC)
    likelihood = log_likelihood(probability_NC, label_N, model.rows_CK)
    return replace(model, log_likelihood=likelihood)


def fit_with_foreign(
    logits_MNC: npt.NDArray[np.floating], label_N: npt.NDArray[np.integer], start: NoiseModel
) -> NoiseModel | None:
    """Fits a model with the foreign class, if the labels speak for there being foreign images.

    Args:
        logits_MNC: C = K + 1.
        label_N: Given labels, not seen by the logits.
        start: A model with that class, where the fits begin.

    Returns:
        None where the same logits without the last class predict the labels about as well.
    """
    found = fit_noise_model(logits_MNC, label_N, start)
    without = fit_noise_model(logits_MNC[:, :, :-1], label_N, replace(start, foreign=None))
    posterior_NC = responsibilities(found.probabilities(logits_MNC), label_N, found.rows_CK)
    gain = (found.log_likelihood - without.log_likelihood) * len(label_N)
    return found if gain > max(_GAIN, _GAIN_PER_IMAGE * posterior_NC[:, -1].sum()) else None


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
    return float(np.log(np.maximum(evidence_N, LEAST)).sum())


def _fit_evenly(
    logits_MNK: npt.NDArray[np.floating], label_N: npt.NDArray[np.integer], start: NoiseModel
) -> NoiseModel:
    n_opinions, n_samples, n_classes = logits_MNK.shape
    share_K = (np.bincount(label_N, minlength=n_classes) + HALF) / (n_samples + HALF * n_classes)
    share_N, own = share_K[label_N], (np.arange(n_samples), label_N)

    def cost(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        kept = float(expit(values[-1]))
        probability_NK = class_probabilities(logits_MNK, values[:-1])
        agree_N = probability_NK[own]
        evidence_N = np.maximum(kept * agree_N + (1 - kept) * share_N, LEAST)
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


def _rows(values: npt.NDArray[np.float64], n_classes: int) -> npt.NDArray[np.float64]:
    raw_KK = values.reshape(n_classes, n_classes)
    transition_KK = np.exp(raw_KK - raw_KK.max(1, keepdims=True))
    transition_KK /= transition_KK.sum(1, keepdims=True)
    return np.asarray(transition_KK)
