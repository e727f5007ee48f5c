"""What is to be tuned on what: arrays and settings that can be handed to another process.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardsieve.config import EmbedConfig, Precision, SelectConfig, TuneConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.location import ShardPath
from shardsieve_kernels import Backend


@dataclass(frozen=True, slots=True)
class Labelled:
    """Where images lie and which label each has: the numbers of an index, without its texts.

    Attributes:
        paths: Shards by number.
        shard_N: (N,) i32, shard of each image.
        offset_N: (N,) i64, first byte of each image.
        size_N: (N,) i64, bytes of each image.
        label_N: (N,) i32, -1 where there is none.
        usable_N: (N,) samples with an image that can be decoded and a label.
    """

    paths: tuple[ShardPath, ...]
    shard_N: npt.NDArray[np.int32]
    offset_N: npt.NDArray[np.int64]
    size_N: npt.NDArray[np.int64]
    label_N: npt.NDArray[np.int32]
    usable_N: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, index: SampleIndex, usable_N: npt.NDArray[np.bool_] | None = None) -> Labelled:
        """Takes the columns of an index; `usable_N` is what it can read where nothing is given."""
        return cls(
            tuple(ref.path for ref in index.shards),
            index.numbers("shard"),
            index.numbers("image_offset"),
            index.numbers("image_size"),
            index.label_N,
            index.readable_N if usable_N is None else usable_N,
        )

    def __len__(self) -> int:
        return len(self.label_N)


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What the selection holds each label to be, for soft targets.

    Attributes:
        given_N: (N,) f32, probability of the label that is trained on, NaN where nobody judged.
        suggested_N: (N,) i32, the most probable class, -1 where nothing is suggested.
        confidence_N: (N,) f32, its probability.
    """

    given_N: npt.NDArray[np.float32]
    suggested_N: npt.NDArray[np.int32]
    confidence_N: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning.

    Attributes:
        samples: Images with the labels to learn.
        classes: K names.
        kept_N: (N,) the clean samples.
        decided_N: (N,) samples that people decided on; reselection leaves them as they are.
        loss_N: (N,) f32, the probe's cross entropy in nats, NaN where there is none.
        beliefs: For `config.labels` = "soft", else None.
        head: Content of the probe's `head.safetensors`.
        config: Epochs, optimiser, augmentation, reselection; `processes` and what depends on the
            recipe is resolved.
        embed: The backbone as it was embedded.
        select: The recipe, for reselection.
        q: Of the probe's loss, for `select.loss` = "gce".
        validation: Clean samples to measure accuracy on, or None.
        out: Folder that gets the results.
        seed: Of everything random.
        precision: Number format of forward passes, resolved.
        workers: Processes that decode, in all.
        backend: Which kernels select.
    """

    samples: Labelled
    classes: tuple[str, ...]
    kept_N: npt.NDArray[np.bool_]
    decided_N: npt.NDArray[np.bool_]
    loss_N: npt.NDArray[np.float32]
    beliefs: Beliefs | None
    head: bytes
    config: TuneConfig
    embed: EmbedConfig
    select: SelectConfig
    q: float
    validation: Labelled | None
    out: Path
    seed: int
    precision: Precision
    workers: int
    backend: Backend
