"""LossTable: what the probe says of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardsieve.data.table import column, read_ipc, write_ipc


@dataclass(frozen=True, slots=True)
class LossTable:
    """One row per sample of the index; NaN and -1 where a sample could not be read.

    Attributes:
        loss_N: (N,) f32, cross entropy of the given label, nats.
        margin_N: (N,) f32, probability of the given label minus the largest other one, in [-1, 1].
        pred_N: (N,) i32, the most probable class.
        fold_N: (N,) i8, fold whose probe scored the row, -1 when the probe had seen it.
    """

    loss_N: npt.NDArray[np.float32]
    margin_N: npt.NDArray[np.float32]
    pred_N: npt.NDArray[np.int32]
    fold_N: npt.NDArray[np.int8]

    @classmethod
    def empty(cls, n_samples: int) -> LossTable:
        """Returns a table in which no sample has been scored."""
        return cls(
            np.full(n_samples, np.nan, np.float32),
            np.full(n_samples, np.nan, np.float32),
            np.full(n_samples, -1, np.int32),
            np.full(n_samples, -1, np.int8),
        )

    @classmethod
    def open(cls, path: Path) -> LossTable:
        """Maps a table that `write` wrote."""
        table = read_ipc(path)
        return cls(*(column(table, name) for name in ("loss", "margin", "pred", "fold")))

    def write(self, path: Path) -> None:
        """Writes the table as an Arrow IPC file."""
        columns = (self.loss_N, self.margin_N, self.pred_N, self.fold_N)
        names = ["loss", "margin", "pred", "fold"]
        write_ipc(path, pa.table([pa.array(values) for values in columns], names=names))

    def __len__(self) -> int:
        return len(self.loss_N)
