"""The frozen backbone on one device, and the threads that feed it.

Shapes: B batch, D features.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import EmbedConfig
from shardsieve.data.index import SampleIndex
from shardsieve.errors import ConfigError
from shardsieve.models.backbone import Backbone, load_backbone
from shardsieve.models.engine import (
    Engine,
    batch_size,
    find_batch_size,
    load_engine,
    refuse_engine,
)
from shardsieve.models.precision import resolve_precision
from shardsieve.shards.device_pixels import DeviceBatches
from shardsieve.shards.images import quiet_pillow
from shardsieve.shards.pixels import Fit, exact_decoder, fast_decoder
from shardsieve.shards.prefetch import Batch, Clock, ImageBatches, Rows, in_order

# Batches that are decoded or under way, beside those that the threads work on.
_AHEAD = 2


class Embedded(NamedTuple):
    """What came of a batch.

    Attributes:
        features_BD: (B, D) f16 of the rows that could be decoded.
        rows: (B,) those rows.
        refused: The other rows, and why.
    """

    features_BD: npt.NDArray[np.float16]
    rows: Rows
    refused: list[tuple[int, str]]


class Runner:
    """The backbone on one device, with the threads that feed it.

    On a CPU every thread reads, decodes and computes a batch by itself, on one core: nothing is
    handed over, no thread waits for another, and the features have the same bits whatever the
    number of threads. On a GPU the threads decode, and
    copies run beside the network on a stream of their own.
    """

    def __init__(self, config: EmbedConfig, device: torch.device, workers: int) -> None:
        """Loads the network; `read_from` says where the images are.

        Args:
            config: Backbone, decoder, engine.
            device: Where the network runs.
            workers: Threads; 0 does everything in the caller's.
        """
        refuse_engine(config, device)
        self._device = device
        self._threads = workers
        self._backbone = load_backbone(config, device)
        self._precision = resolve_precision(config.precision, device)
        # A compiled network belongs to the thread that compiled it.
        self._in_lanes = device.type == "cpu" and not config.compile
        lanes = max(workers, 1) if self._in_lanes else 1
        self.engine: Engine = load_engine(
            self._backbone, config, device, self._precision, lanes=lanes
        )
        side = self._backbone.preprocessing.size
        self.batch_size = batch_size(config, device) or find_batch_size(self.engine, side, device)
        self._config = config
        self.images: ImageBatches
        # Where the time goes.
        self.clock = Clock()

    @property
    def dim(self) -> int:
        """D."""
        return self._backbone.dim

    @property
    def facts(self) -> dict[str, Any]:
        """What the features are made with."""
        return {
            "backbone": self._backbone.name,
            "weights": self._backbone.weights,
            "preprocessing": dataclasses.asdict(self._backbone.preprocessing),
            "precision": self._precision,
            "dim": self.dim,
            "engine": self._config.engine,
            "decode": self._config.decode,
            "batch_size": self.batch_size,
            "warm_up_s": round(self.engine.warm_up_s, 3),
        }

    def read_from(self, index: SampleIndex) -> None:
        """Says where the images of the next batches are."""
        self.images = _images(index, self._config, self._backbone, self._device)
        self.images.clock = self.clock

    def run(self, batches: Sequence[Rows]) -> Generator[Embedded]:
        """Embeds the images of some rows, batch after batch.

        Raises:
            ShardError: A shard is gone or changed.
        """
        cores = torch.get_num_threads()
        how: dict[str, Any] = {
            "threads": self._threads,
            "ahead": self._threads + _AHEAD,
            "start": self._use_one_core,
        }
        with quiet_pillow():
            try:
                if self._in_lanes:
                    if not self._threads:
                        self._use_one_core()
                    yield from in_order(self._decode_and_compute, batches, **how)
                else:
                    yield from self._compute(in_order(self.images, batches, **how))
            finally:
                self.images.close()
                # What a thread sets is what later threads begin with.
                torch.set_num_threads(cores)

    def _use_one_core(self) -> None:
        # The sums of a convolution are split by threads: their number decides the last bits.
        if self._in_lanes:
            torch.set_num_threads(1)

    def _decode_and_compute(self, rows: Rows) -> Embedded:
        batch = self.images(rows)
        start = time.perf_counter()
        features = self.engine(batch.pixels).half() if len(batch.rows) else _nothing(self.dim)
        self.clock.add(model_s=time.perf_counter() - start)
        return Embedded(features.numpy(), batch.rows, batch.refused)

    def _compute(self, decoded: Generator[Batch]) -> Iterator[Embedded]:
        """Runs the network in the caller's thread; a batch is handed on when the next is begun."""
        copies = None
        if self._device.type == "cuda":
            copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        under_way: list[tuple[Callable[[], object], torch.Tensor, Batch]] = []
        while True:
            start = time.perf_counter()
            batch = next(decoded, None)
            waited = time.perf_counter()
            self.clock.add(wait_s=waited - start)
            if batch is None:
                break
            under_way.append((*self._begin(batch, copies), batch))
            if len(under_way) > 1:
                yield _handed_on(*under_way.pop(0))
            self.clock.add(model_s=time.perf_counter() - waited)
        for last in under_way:
            yield _handed_on(*last)

    def _begin(
        self, batch: Batch, copies: torch.cuda.Stream | None
    ) -> tuple[Callable[[], object], torch.Tensor]:
        """Returns what waits for the features, and where they will be."""
        if not len(batch.rows):
            return _nothing_to_wait_for, _nothing(self.dim)
        if copies is None:
            return _nothing_to_wait_for, self.engine(batch.pixels).half()
        with torch.cuda.device(self._device):
            compute = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(copies):
                pixels = batch.pixels.to(self._device, non_blocking=True)
            compute.wait_stream(copies)
            # Or its memory could be given to the next copy while the network still reads it.
            pixels.record_stream(compute)
            computed = self.engine(pixels).half()
            features = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)
            features.copy_(computed, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(compute)
        return ready.synchronize, features


def _handed_on(wait: Callable[[], object], features: torch.Tensor, batch: Batch) -> Embedded:
    wait()
    return Embedded(features.numpy(), batch.rows, batch.refused)


def _nothing_to_wait_for() -> None:
    return None


def _nothing(dim: int) -> torch.Tensor:
    return torch.empty((0, dim), dtype=torch.float16)


def time_spent(parts: Mapping[str, float], wall_s: float) -> dict[str, Any]:
    """Says where the time went and what held the network up.

    Args:
        parts: Seconds of each part, of all devices.
        wall_s: Seconds on the clock.

    Returns:
        Seconds of each part, all threads added up; `wall_s`; `bottleneck`, the part that took
        most of them; and `of_model_speed`, the share of the speed that the network would have had
        with its input in memory, on the same cores.
    """
    spent: dict[str, Any] = {name: round(seconds, 3) for name, seconds in sorted(parts.items())}
    model_s = parts.get("model_s", 0.0)
    # On a CPU the parts share the cores; beside a GPU only waiting holds the network up.
    others = {"wait_s"} if "wait_s" in parts else {"read_s", "decode_s"}
    held_up_s = sum(parts.get(name, 0.0) for name in others)
    if model_s:
        spent["of_model_speed"] = round(model_s / (model_s + held_up_s), 3)
        input_parts = {name: parts.get(name, 0.0) for name in ("read_s", "decode_s")}
        slower = max(input_parts, key=lambda name: input_parts[name])
        spent["bottleneck"] = "model" if model_s >= held_up_s else slower.removesuffix("_s")
    return spent | {"wall_s": round(wall_s, 3)}


def _images(
    index: SampleIndex, config: EmbedConfig, backbone: Backbone, device: torch.device
) -> ImageBatches:
    columns = (
        [ref.path for ref in index.shards],
        index.numbers("shard"),
        index.numbers("image_offset"),
        index.numbers("image_size"),
    )
    ways = backbone.preprocessing
    fit = Fit.of(ways.size, ways.crop_pct, ways.crop_mode, ways.interpolation)

    def key_of(row: int) -> str:
        return str(index.keys_N[row])

    if config.decode == "device":
        if fit is None:
            raise ConfigError(
                f"embed.decode = device: {backbone.name} wants its images resized by "
                f"{ways.interpolation} and cropped by {ways.crop_mode}; choose exact"
            )
        return DeviceBatches(*columns, fit=fit, device=device, key_of=key_of)
    # What timm does otherwise than in the middle is left to timm.
    fast = config.decode == "fast" and fit is not None
    decoder = fast_decoder(fit) if fast and fit else exact_decoder(ways.evaluation())
    return ImageBatches(
        *columns, decoder, side=ways.size, key_of=key_of, pinned=device.type == "cuda"
    )
