"""Cleaning without shards: own features or own predicted probabilities, in memory.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from shardsieve.config import Config, load_config
from shardsieve.errors import ConfigError
from shardsieve.selection.turn import mixture_losses, select_turn
from shardsieve_kernels import Backend, resolve_backend

# Steps per epoch that small data get: at the default step size fewer would leave the probe where
# it began.
_STEPS_PER_EPOCH = 20
_SMALLEST_BATCH = 16
# A probability of zero for the given label would be an infinite loss.
_LEAST_PROBABILITY = 1e-12
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class CleanLabels:
    """What is known about N labels.

    Attributes:
        keep: (N,) bool, p_clean > tau.
        p_clean: (N,) f64 in [0, 1], that the given label is right.
        suggested_labels: (N,) the most probable class by what was seen, of the type of the labels;
            for a kept sample too, where it mostly is the label itself.
        noise_rate: Expected share of wrong labels: the mean of 1 - p_clean.
        classes: (K,) the classes, in the order of their numbers.
        fallbacks: Why a class was not judged by a mixture of its own, by class; most are absent.
    """

    keep: npt.NDArray[np.bool_]
    p_clean: npt.NDArray[np.float64]
    suggested_labels: npt.NDArray[Any]
    noise_rate: float
    classes: npt.NDArray[Any]
    fallbacks: dict[Any, str]


class _Evidence(NamedTuple):
    """What a recipe may look at; features are absent where probabilities were given."""

    label_N: npt.NDArray[np.int32]
    n_classes: int
    loss_N: npt.NDArray[np.float32]
    pred_N: npt.NDArray[np.int32]
    features_ND: npt.NDArray[np.floating] | None


class _Judgement(NamedTuple):
    p_clean_N: npt.NDArray[np.float64]
    suggested_N: npt.NDArray[np.int32]
    why_K: Sequence[str]


def clean_labels(
    labels: npt.ArrayLike,
    *,
    features: npt.ArrayLike | None = None,
    pred_probs: npt.ArrayLike | None = None,
    classes: Sequence[Any] | None = None,
    recipe: Literal["turn"] = "turn",
    tau: float = 0.6,
    loss: Literal["ce", "gce"] = "ce",
    min_samples: int = 20,
    q: float = 0.7,
    epochs: int = 20,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    normalise: Literal["standardise", "l2", "none"] = "standardise",
    batch_size: int | None = None,
    folds: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> CleanLabels:
    """Finds wrong labels by features or by predicted probabilities, one of the two.

    With features, a linear probe is trained on the labels and every sample is scored by it. With
    probabilities, nothing is trained: they should come from a model that did not see the sample
    (cross validation), or the losses of wrong labels are as small as those of right ones.

    Args:
        labels: (N,) given labels: numbers or text.
        features: (N, D) finite, such as a frozen backbone's.
        pred_probs: (N, K) probabilities; column k is the k-th of `classes`.
        classes: The K classes in the order of the columns; default: 0 to K - 1 with `pred_probs`,
            the sorted labels with `features`.
        recipe: How losses become p_clean; `turn`: a two-component mixture per class.
        tau: A sample is kept when its p_clean is above this.
        loss: The loss that the mixtures see.
        min_samples: A class with fewer is judged by the mixture of all classes.
        q: Of the probe's generalised cross entropy.
        epochs: Passes of the probe over the features.
        lr: Its peak step size.
        weight_decay: Its weight decay.
        normalise: How features are scaled before the probe.
        batch_size: Samples in a step; default: 512, less where N is below 10,240, so that an epoch
            has 20 steps.
        folds: 0: every sample is scored by the probe that was trained on it; k >= 2: by the one of
            k probes that was not.
        seed: Of shuffles and folds.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: Arrays of the wrong shape, with values that are not finite, both or neither of
            features and pred_probs, or labels outside the classes.
        ConfigError: A setting is out of range.
        DataError: The probe's training diverged.
    """
    labels_N, evidence_ND = _arrays(labels, features, pred_probs)
    settings = _settings(
        {
            **{"select.recipe": recipe, "select.tau": tau, "select.loss": loss},
            **{"select.min_samples": min_samples, "probe.q": q, "probe.epochs": epochs},
            **{"probe.lr": lr, "probe.weight_decay": weight_decay, "probe.folds": folds},
            **{"probe.normalise": normalise, "seed": seed, "device": device},
            "probe.batch_size": batch_size or _batch_size(len(labels_N)),
        }
    )
    class_K = _classes(labels_N, evidence_ND if features is None else None, classes)
    seen = _look(evidence_ND, _numbers(labels_N, class_K), class_K, settings, features is not None)
    return _judge(seen, class_K, settings)


def _look(
    evidence_ND: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.int32],
    class_K: npt.NDArray[Any],
    settings: Config,
    are_features: bool,
) -> _Evidence:
    if not are_features:
        return _Evidence(label_N, len(class_K), *_score(evidence_ND, label_N), None)
    loss_N, pred_N = _probe(evidence_ND, label_N, len(class_K), settings)
    return _Evidence(label_N, len(class_K), loss_N, pred_N, evidence_ND)


def _judge(seen: _Evidence, class_K: npt.NDArray[Any], settings: Config) -> CleanLabels:
    judged = _RECIPES[settings.select.recipe](seen, settings)
    why = zip(class_K.tolist(), judged.why_K, strict=True)
    return CleanLabels(
        keep=judged.p_clean_N > settings.select.tau,
        p_clean=judged.p_clean_N,
        suggested_labels=class_K[judged.suggested_N],
        noise_rate=float(np.mean(1.0 - judged.p_clean_N)),
        classes=class_K,
        fallbacks={name: sentence for name, sentence in why if sentence},
    )


def _arrays(
    labels: npt.ArrayLike, features: npt.ArrayLike | None, pred_probs: npt.ArrayLike | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.floating]]:
    if (features is None) == (pred_probs is None):
        raise ValueError("give features or pred_probs, one of the two")
    labels_N = column_or_1d(labels)
    check_classification_targets(labels_N)
    given = features if features is not None else pred_probs
    name = "features" if features is not None else "pred_probs"
    evidence_ND = check_array(given, input_name=name)
    if len(labels_N) != len(evidence_ND):
        raise ValueError(
            f"{len(labels_N)} labels and {len(evidence_ND)} rows: one of each a sample"
        )
    return labels_N, evidence_ND


def _settings(values: dict[str, Any]) -> Config:
    if values["select.recipe"] not in _RECIPES:
        raise ConfigError(
            f"recipe {values['select.recipe']!r}: for arrays there is {', '.join(_RECIPES)}"
        )
    return load_config(values=values)


def _backend() -> Backend:
    # The arrays are in this machine's memory: the way to a GPU and back would not pay.
    return resolve_backend("cpu")


def _batch_size(n_samples: int) -> int:
    return min(512, max(_SMALLEST_BATCH, n_samples // _STEPS_PER_EPOCH))


def _classes(
    labels_N: npt.NDArray[Any],
    pred_probs_NK: npt.NDArray[np.floating] | None,
    classes: Sequence[Any] | None,
) -> npt.NDArray[Any]:
    if classes is not None:
        class_K = np.asarray(classes)
        if class_K.ndim != 1 or len(np.unique(class_K)) != len(class_K):
            raise ValueError("classes: a list of different names or numbers is needed")
    elif pred_probs_NK is not None:
        class_K = np.arange(pred_probs_NK.shape[1])
    else:
        class_K = np.unique(labels_N)
    if pred_probs_NK is not None and len(class_K) != pred_probs_NK.shape[1]:
        raise ValueError(f"{len(class_K)} classes, but pred_probs has {pred_probs_NK.shape[1]}")
    return class_K


def _numbers(labels_N: npt.NDArray[Any], class_K: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    order = np.argsort(class_K, kind="stable")
    ordered = class_K[order]
    at_N = np.minimum(np.searchsorted(ordered, labels_N), len(ordered) - 1)
    outside = ordered[at_N] != labels_N
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"label {labels_N[row]!r} of row {row} is none of the {len(class_K)} classes; "
            "give classes in the order of the columns of pred_probs"
        )
    return order[at_N].astype(np.int32)


def _probe(
    features_ND: npt.NDArray[np.floating],
    label_N: npt.NDArray[np.int32],
    n_classes: int,
    settings: Config,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    # torch is loaded by those who need it: probabilities do not.
    from shardsieve.models.precision import resolve_device
    from shardsieve.models.probe.arrays import probe_arrays

    folds = settings.probe.folds
    if folds > len(label_N):
        raise ValueError(f"folds = {folds}, but n_samples = {len(label_N)}")
    losses = probe_arrays(
        features_ND,
        label_N,
        n_classes,
        settings.probe,
        seed=settings.seed,
        device=resolve_device(settings.device),
        backend=_backend(),
    )
    return losses.loss_N, losses.pred_N


def _score(
    pred_probs_NK: npt.NDArray[np.floating], label_N: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    sum_N = pred_probs_NK.sum(axis=1)
    if (pred_probs_NK < 0).any() or (np.abs(sum_N - 1) > _SUM_TOLERANCE).any():
        row = int(np.argmax(np.abs(sum_N - 1)))
        raise ValueError(
            f"pred_probs: rows must be probabilities that sum to 1; row {row} sums to "
            f"{sum_N[row]:.4g}, the smallest value is {pred_probs_NK.min():.4g}"
        )
    given_N = pred_probs_NK[np.arange(len(label_N)), label_N]
    loss_N = -np.log(np.maximum(given_N, _LEAST_PROBABILITY))
    return loss_N.astype(np.float32), pred_probs_NK.argmax(axis=1).astype(np.int32)


def _turn(seen: _Evidence, settings: Config) -> _Judgement:
    """The paper's recipe; it suggests nothing itself, so the prediction is the suggestion."""
    chosen = settings.select
    selection = select_turn(
        mixture_losses(seen.loss_N, chosen.loss, settings.probe.q),
        seen.label_N,
        seen.n_classes,
        preset=chosen.gmm,
        min_samples=chosen.min_samples,
        reg_covar=chosen.reg_covar,
        backend=_backend(),
    )
    return _Judgement(selection.p_clean_N, seen.pred_N, selection.why_K)


# Another recipe is a function like this one, under its name in `SelectConfig.recipe`.
_RECIPES: dict[str, Callable[[_Evidence, Config], _Judgement]] = {"turn": _turn}
