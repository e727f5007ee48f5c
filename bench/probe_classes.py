"""Features of classes that overlap, with planted label noise, for measurements of the probe."""

from __future__ import annotations

import numpy as np

from bench.noise import symmetric

Q = 0.7
DIM = 768
# How far class centres lie apart, so that the best linear classifier is right in about 4 of 5.
SPREAD = 0.13


def make_classes(
    n_train: int, n_test: int, n_classes: int, noise: float = 0.4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns overlapping classes: (N, D) f16 and given and true labels, then a clean test set."""
    rng = np.random.default_rng(0)
    n_samples = n_train + n_test
    true_N = rng.integers(0, n_classes, n_samples, dtype=np.int32)
    centres_KD = SPREAD * rng.standard_normal((n_classes, DIM), np.float32)
    features_ND = np.empty((n_samples, DIM), np.float16)
    for start in range(0, n_samples, 10_000):
        part = slice(start, min(start + 10_000, n_samples))
        noise_BD = rng.standard_normal((part.stop - part.start, DIM), np.float32)
        features_ND[part] = noise_BD + centres_KD[true_N[part]]
    train, test = slice(0, n_train), slice(n_train, None)
    given_N = symmetric(true_N[train].astype(np.int64), noise, n_classes, 0).astype(np.int32)
    return features_ND[train], given_N, true_N[train], features_ND[test], true_N[test]
