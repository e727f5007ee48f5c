"""Where the features of a probe come from: a store on disk, or an array.

Shapes: N samples, B batch, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class FeatureSource(Protocol):
    """Rows of features, gathered as they are needed; `FeatureStore` is one."""

    @property
    def dim(self) -> int:
        """D."""

    def __len__(self) -> int: ...

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Gathers (B, D) floats, a copy that the caller may change."""


@dataclass(frozen=True, slots=True)
class ArrayFeatures:
    """Features in an array of (N, D) f16, f32 or f64, mapped or not."""

    values_ND: npt.NDArray[Any]

    @property
    def dim(self) -> int:
        """D."""
        return int(self.values_ND.shape[1])

    def __len__(self) -> int:
        return len(self.values_ND)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Gathers (B, D) of the array's type."""
        return np.take(self.values_ND, rows, axis=0)


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows of a source that lie side by side, as a source of their own.

    Attributes:
        features: The source.
        start: Its first row here.
        stop: The row after its last one.
    """

    features: FeatureSource
    start: int
    stop: int

    @property
    def dim(self) -> int:
        """D."""
        return self.features.dim

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Gathers (B, D) of the source's type."""
        return self.features.take(rows + self.start)


def as_source(features: FeatureSource | npt.NDArray[Any]) -> FeatureSource:
    """Makes a source of what a caller has.

    Raises:
        TypeError: An array that is not (N, D) of floats.
    """
    if not isinstance(features, np.ndarray):
        return features
    if features.ndim != 2 or features.dtype.kind != "f":
        raise TypeError(
            f"features must be (N, D) floats, found {features.dtype} of shape {features.shape}"
        )
    return ArrayFeatures(features)


def sequential(
    features: FeatureSource, rows: npt.NDArray[np.int64], size: int
) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yields (which part of `rows`, their features) in the order of `rows`."""
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        yield part, features.take(rows[part])
