"""Labels and weights of the rows that are trained on, as the solvers need them.

Shapes: N samples, R rows trained on, B batch, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.models.probe.heads import HeadSpec


class Targets:
    """Per row: its label, its fold and its weights; on the device, in the order of the batches."""

    def __init__(
        self,
        label_R: npt.NDArray[np.integer[Any]],
        fold_R: npt.NDArray[np.integer[Any]] | None,
        weight: npt.NDArray[np.floating[Any]] | None,
        specs: Sequence[HeadSpec],
        *,
        order: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        """Puts them on the device.

        Args:
            label_R: Class numbers.
            fold_R: Fold of each row, None if there are none.
            weight: (R,) or (R, H), None is 1.
            specs: The heads.
            order: (R,) row at each position, None if as given.
            device: Where the arithmetic runs.
        """

        def put(values: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)
            return tensor if order is None else tensor[order]

        self.n_heads = len(specs)
        self._label_R = put(label_R, torch.int32)
        self._weight = None if weight is None else put(weight, torch.float32)
        self.per_head = weight is not None and weight.ndim == 2
        """Whether heads have weights of their own, beside their folds."""
        folds = [-1 if spec.fold is None else spec.fold for spec in specs]
        self._fold_H = torch.tensor(folds, device=device)
        self._fold_R = None
        if fold_R is not None and max(folds) >= 0:
            self._fold_R = put(fold_R, torch.int16)

    @property
    def all_weigh_the_same(self) -> bool:
        """Whether every head may see every row, and no row has a weight."""
        return self._fold_R is None and self._weight is None

    def shared_at(
        self, where: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Returns (B,) labels, folds and the weight that all heads share, None where there is none.

        Not for weights per head.
        """
        if isinstance(where, np.ndarray):
            where = torch.from_numpy(where).to(self._label_R.device)
        fold_B = None if self._fold_R is None else self._fold_R[where]
        return self._label_R[where], fold_B, None if self._weight is None else self._weight[where]

    def at(self, where: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (B,) labels and (B, H) weights, None if all are 1, at some positions."""
        if isinstance(where, np.ndarray):
            where = torch.from_numpy(where).to(self._label_R.device)
        labels_B = self._label_R[where]
        if self.all_weigh_the_same:
            return labels_B, None
        weights_BH = torch.ones(len(labels_B), self.n_heads, device=labels_B.device)
        if self._fold_R is not None:
            weights_BH *= self._fold_R[where][:, None] != self._fold_H
        if self._weight is not None:
            weight = self._weight[where]
            weights_BH *= weight if weight.ndim == 2 else weight[:, None]
        return labels_B, weights_BH
