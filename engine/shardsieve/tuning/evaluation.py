"""The network as it is, on images as they are: losses of samples, accuracy.

Shapes: N samples, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shardsieve.config import Precision
from shardsieve.engines.processes import Group
from shardsieve.errors import DataError
from shardsieve.models.backbone import Preprocessing
from shardsieve.models.precision import autocast
from shardsieve.progress import Progress
from shardsieve.shards.dataset import Decoded, ImageRows, stream
from shardsieve.tuning.job import Labelled
from shardsieve_kernels import Backend
from shardsieve_kernels.softmax_stats import softmax_stats

# On a GPU every batch is waited for once.
_BATCH, _GPU_BATCH = 64, 128

Batch = tuple[torch.Tensor, npt.NDArray[np.int64], list[Decoded]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How images reach the network.

    Attributes:
        preprocessing: As timm resolves it.
        precision: Of forward passes, resolved.
        group: The processes.
        workers: Processes that decode, for each of them.
        progress: Where to report.
    """

    preprocessing: Preprocessing
    precision: Precision
    group: Group
    workers: int
    progress: Progress

    def batches(
        self,
        samples: Labelled,
        rows: list[npt.NDArray[np.int64]],
        transform: Callable[[Any], Any],
        seed: tuple[int, ...] | None = None,
    ) -> Iterator[Batch]:
        """Decodes batches of rows, as `shardsieve.shards.dataset.stream`."""
        images = ImageRows(
            samples.paths, samples.shard_N, samples.offset_N, samples.size_N, transform, seed
        )
        return stream(images, rows, workers=self.workers, device=self.group.device)

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Runs normalised images through the network; returns (B, K) f32."""
        with autocast(self.precision, self.group.device):
            output: torch.Tensor = network(images)
        return output.float()


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    reading: Reading,
    samples: Labelled,
    stage: str,
    use: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], None],
) -> None:
    """Calls `use` with rows and (B, K) logits of this process's share of the usable samples."""
    network.eval()
    group = reading.group
    mine = np.flatnonzero(samples.usable_N)[group.rank :: group.world]
    size = _GPU_BATCH if group.device.type == "cuda" else _BATCH
    batches = np.array_split(mine, max(1, -(-len(mine) // size)))
    transform = reading.preprocessing.evaluation()
    with reading.progress.track(stage, len(mine), "images") as advance:
        for pixels, rows, bad in reading.batches(samples, batches, transform):
            advance(len(rows) + len(bad))
            if len(rows):
                images = reading.preprocessing.normalise(pixels, group.device)
                use(rows, reading.logits(network, images).cpu().numpy())


def losses_of(
    network: nn.Module, reading: Reading, samples: Labelled, backend: Backend
) -> npt.NDArray[np.float32]:
    """Returns (N,) f32 cross entropy in nats, NaN where a sample cannot be read."""
    losses_N = np.zeros(len(samples), np.float32)
    seen_N = np.zeros(len(samples), np.float32)

    def use(rows: npt.NDArray[np.int64], logits_BK: npt.NDArray[np.float32]) -> None:
        losses_N[rows] = softmax_stats(logits_BK, samples.label_N[rows], backend=backend).loss_N
        seen_N[rows] = 1

    evaluate(network, reading, samples, "reselect", use)
    both = torch.from_numpy(np.stack([losses_N, seen_N])).to(reading.group.device)
    losses_N, seen_N = reading.group.sum_(both).cpu().numpy()
    return np.where(seen_N > 0, losses_N, np.float32(np.nan))


def accuracy_of(network: nn.Module, reading: Reading, samples: Labelled) -> float:
    """Returns the share of the samples whose largest logit is that of their label.

    Raises:
        DataError: No image can be decoded.
    """
    counts = np.zeros(2)

    def use(rows: npt.NDArray[np.int64], logits_BK: npt.NDArray[np.float32]) -> None:
        counts[0] += np.count_nonzero(logits_BK.argmax(1) == samples.label_N[rows])
        counts[1] += len(rows)

    evaluate(network, reading, samples, "validate", use)
    totals = torch.from_numpy(counts.astype(np.float32)).to(reading.group.device)
    right, seen = reading.group.sum_(totals).tolist()
    if not seen:
        raise DataError("no validation image can be decoded; look at the validation shards")
    return float(right / seen)
