"""What people train on cached features without shardsieve, to measure the probe against."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.probe_classes import DIM, Q
from bench.timing import cost


def plain_gce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Generalised cross entropy as people write it."""
    p_B = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return (1 - p_B.clamp_min(1e-7) ** Q) / Q


def torch_loop(
    features_ND: np.ndarray,
    label_N: np.ndarray,
    n_classes: int,
    epochs: int,
    test: torch.Tensor,
    accuracy: Callable[[torch.Tensor], float],
) -> dict[str, Any]:
    """What an epoch of the loop costs, and how right the classifier is after each."""
    epoch, model = torch_epoch(features_ND, label_N, n_classes)
    spent, right = [], []
    for _ in range(epochs):
        spent.append(cost(epoch).cpu_s)
        with torch.no_grad():
            right.append(accuracy(model(test)))
    return {
        "epoch_cpu_s": round(statistics.median(spent), 3),
        "total_cpu_s": round(sum(spent), 3),
        "accuracy": right,
    }


def torch_epoch(
    features_ND: np.ndarray, label_N: np.ndarray, n_classes: int
) -> tuple[Callable[[], None], torch.nn.Linear]:
    """What one writes without shardsieve: DataLoader, autograd, AdamW."""
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.from_numpy(features_ND).float(), torch.from_numpy(label_N).long())
    loader = DataLoader(data, batch_size=128, shuffle=True)
    model = torch.nn.Linear(DIM, n_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> None:
        for inputs, labels in loader:
            optimiser.zero_grad()
            plain_gce(model(inputs), labels).mean().backward()
            optimiser.step()

    return epoch, model


def sklearn(
    features_ND: np.ndarray, label_N: np.ndarray, max_iter: int, test: torch.Tensor, true_N: Any
) -> dict[str, Any]:
    """What scikit-learn's logistic regression costs, and how right it is."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        spent = cost(lambda: model.fit(features_ND.astype(np.float32), label_N)).cpu_s
    return {
        "total_cpu_s": round(spent, 3),
        "iterations": int(model.n_iter_[0]),
        "accuracy": float((model.predict(test.numpy()) == true_N).mean()),
    }
