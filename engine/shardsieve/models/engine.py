"""What runs the frozen backbone: torch, compiled torch, or OpenVINO.

Shapes: B batch, D features, S side of the image in pixels.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from shardsieve.config import EmbedConfig, Precision
from shardsieve.errors import DeviceUnavailable
from shardsieve.models.backbone import Backbone
from shardsieve.models.precision import autocast

# On a CPU a batch and what the layers make of it should stay in the cache: from 16 to 64 images
# made the same network a third slower.
CPU_BATCH = 16
_GPU_BATCHES = (32, 64, 128, 256, 512, 1024)
# A larger batch must be faster by this much, or it is not worth its memory.
_GAIN = 1.03
_FREE_MEMORY = 0.8
# Compiling anew for every size that is tried would take many minutes.
_COMPILED_BATCH = 256


class Engine(Protocol):
    """Runs batches; from several threads where `lanes` were asked for."""

    warm_up_s: float
    """Seconds that were spent before the first batch: compilation, conversion."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs (B, 3, S, S) u8; returns (B, D) f32 on the engine's device."""
        ...


def refuse_engine(config: EmbedConfig, device: torch.device) -> None:
    """Says early what could not run.

    Raises:
        DeviceUnavailable: The engine, number format or decoder cannot be had here.
    """
    if config.precision == "bf16" and device.type == "cpu" and not computes_bf16():
        raise DeviceUnavailable(
            "embed.precision = bf16: this processor has neither avx512_bf16 nor amx and would "
            "emulate it, slower than fp32; leave it at auto, or choose fp32"
        )
    if config.engine == "openvino":
        if device.type != "cpu":
            raise DeviceUnavailable(
                f"embed.engine = openvino runs on a CPU, and the device is {device}; "
                "set device=cpu, or leave the engine at torch"
            )
        if find_spec("openvino") is None:
            raise DeviceUnavailable(
                "embed.engine = openvino: the package openvino is not installed; "
                "pip install 'shardsieve[openvino]'"
            )
        if config.compile:
            raise DeviceUnavailable("embed.compile is torch's; OpenVINO compiles by itself")
    if config.decode == "device" and device.type != "cuda":
        raise DeviceUnavailable(
            "embed.decode = device decodes with a GPU's nvJPEG, and networks run on the "
            f"{device.type} here; leave it at fast"
        )


def computes_bf16() -> bool:
    """Whether this processor has instructions for bf16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def load_engine(
    backbone: Backbone,
    config: EmbedConfig,
    device: torch.device,
    precision: Precision,
    *,
    lanes: int,
) -> Engine:
    """Makes what `config.engine` and `config.compile` say.

    Args:
        backbone: The network, on `device`.
        config: Which engine.
        device: Where it runs.
        precision: Resolved.
        lanes: How many threads will call it at a time, on a CPU with a core each.
    """
    if config.engine == "openvino":
        return _OpenVino(backbone, precision, lanes)
    if config.compile:
        return _Compiled(backbone, device, precision, batch_size(config, device) or _COMPILED_BATCH)
    return _Torch(backbone, device, precision)


def batch_size(config: EmbedConfig, device: torch.device) -> int | None:
    """Returns how many images go through the network at a time, None if that is to be found out."""
    if config.batch_size != "auto":
        return config.batch_size
    if device.type == "cpu":
        return CPU_BATCH
    return _COMPILED_BATCH if config.compile else None


def find_batch_size(engine: Engine, side: int, device: torch.device) -> int:
    """Doubles the batch until it no longer pays or the GPU's memory is nearly full."""
    best, best_rate = _GPU_BATCHES[0], 0.0
    for size in _GPU_BATCHES:
        pixels = torch.zeros((size, 3, side, side), dtype=torch.uint8, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        try:
            rate = _rate(engine, pixels, device)
        except torch.OutOfMemoryError:
            break
        if rate < best_rate * _GAIN:
            break
        best, best_rate = size, rate
        free, whole = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        # The next one takes about twice as much.
        if 2 * reserved > _FREE_MEMORY * (free + reserved) or free < (1 - _FREE_MEMORY) * whole:
            break
    torch.cuda.empty_cache()
    return best


def _rate(engine: Engine, pixels: torch.Tensor, device: torch.device) -> float:
    engine(pixels)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(3):
        engine(pixels)
    torch.cuda.synchronize(device)
    return 3 * len(pixels) / (time.perf_counter() - start)


@dataclass(slots=True)
class _Torch:
    """Eager torch, channels last."""

    backbone: Backbone
    device: torch.device
    precision: Precision
    warm_up_s: float = 0.0

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.backbone.preprocessing.normalise(pixels, self.device)
        with autocast(self.precision, self.device):
            output: torch.Tensor = self.backbone.network(images)
        return output.float()


class _Compiled:
    """torch.compile; every batch has the size it was compiled for, the last one is filled up."""

    def __init__(
        self, backbone: Backbone, device: torch.device, precision: Precision, size: int
    ) -> None:
        network = torch.compile(backbone.network, dynamic=False)
        self._run = _Torch(
            Backbone(backbone.name, network, backbone.preprocessing, backbone.weights),  # type: ignore[arg-type]
            device,
            precision,
        )
        self._size = size
        side = backbone.preprocessing.size
        start = time.perf_counter()
        self(torch.zeros((size, 3, side, side), dtype=torch.uint8))
        self.warm_up_s = time.perf_counter() - start

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        n_images = len(pixels)
        if n_images < self._size:
            filled = pixels.new_zeros((self._size, *pixels.shape[1:]))
            filled[:n_images] = pixels
            pixels = filled
        return self._run(pixels)[:n_images]


class _Normalised(nn.Module):
    """(B, S, S, 3) u8 to features, so that OpenVINO sees all of it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        side = backbone.preprocessing
        self.register_buffer("mean", torch.tensor(side.mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(side.std).view(1, -1, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(
            (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        )
        return output


@dataclass(slots=True)
class _Requests:
    """A request per thread: OpenVINO's are not shared."""

    compiled: Any
    local: threading.local = field(default_factory=threading.local)

    def mine(self) -> Any:
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        return self.local.request


class _OpenVino:
    """The network converted from torch, on the CPU, a stream per lane."""

    def __init__(self, backbone: Backbone, precision: Precision, lanes: int) -> None:
        import openvino

        start = time.perf_counter()
        side = backbone.preprocessing.size
        example = torch.zeros((2, side, side, 3), dtype=torch.uint8)
        # In another memory format the converter finds strides it cannot read.
        network = _Normalised(backbone).eval().to(memory_format=torch.contiguous_format)
        with warnings.catch_warnings():
            # About torch.jit, which the converter traces with.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(
                network, example_input=example, input=[(-1, side, side, 3)]
            )
        numbers = {"fp32": "f32", "bf16": "bf16"}[precision]
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": numbers,
                "NUM_STREAMS": max(lanes, 1),
                "INFERENCE_NUM_THREADS": max(lanes, 1),
            },
        )
        self._requests = _Requests(compiled)
        self.warm_up_s = time.perf_counter() - start

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        images_BSS3 = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        outputs = self._requests.mine().infer([images_BSS3], share_inputs=True)
        return torch.from_numpy(np.array(outputs[0], np.float32))
