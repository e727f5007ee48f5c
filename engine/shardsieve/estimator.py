"""`clean_labels` as a scikit-learn estimator.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from shardsieve.arrays import clean_labels


class NoisyLabelFilter(BaseEstimator):  # type: ignore[misc]
    """`clean_labels` on features, as a scikit-learn estimator.

    ```python
    noisy = NoisyLabelFilter(tau=0.6).fit(features, labels)
    model.fit(features[noisy.keep_], labels[noisy.keep_])
    ```

    The parameters are those of `clean_labels`; `random_state` is its seed.

    Attributes:
        keep_: (N,) bool, which samples are kept.
        p_clean_: (N,) f64, that the given label is right.
        suggested_labels_: (N,) the most probable class.
        noise_rate_: Expected share of wrong labels.
        classes_: (K,) the classes.
        fallbacks_: Why a class was not judged by its own mixture, by class.
        n_features_in_: D.
    """

    def __init__(
        self,
        *,
        recipe: str = "turn",
        tau: float = 0.6,
        loss: str = "ce",
        min_samples: int = 20,
        q: float = 0.7,
        epochs: int = 20,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        normalise: str = "standardise",
        batch_size: int | None = None,
        folds: int = 0,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.recipe = recipe
        self.tau = tau
        self.loss = loss
        self.min_samples = min_samples
        self.q = q
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.normalise = normalise
        self.batch_size = batch_size
        self.folds = folds
        self.device = device
        self.random_state = random_state

    # X and y: scikit-learn calls them by these names.
    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> NoisyLabelFilter:
        """Judges the labels.

        Args:
            X: (N, D) features.
            y: (N,) given labels.

        Returns:
            The estimator itself.

        Raises:
            ValueError: As `clean_labels`.
            ConfigError: A parameter is out of range.
        """
        features, labels = validate_data(self, X, y)
        settings = self.get_params(deep=False)
        seed = settings.pop("random_state")
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31))
        found = clean_labels(labels, features=features, seed=seed, **settings)
        self.keep_ = found.keep
        self.p_clean_ = found.p_clean
        self.suggested_labels_ = found.suggested_labels
        self.noise_rate_ = found.noise_rate
        self.classes_ = found.classes
        self.fallbacks_ = found.fallbacks
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
