"""Backbones by timm name: weights from the hub, a package or a file; timm's own preprocessing.

Shapes: B batch, D features, K classes, S side of the image in pixels.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from shardsieve.config import EmbedConfig, Precision
from shardsieve.errors import BackboneError
from shardsieve.models.precision import autocast
from shardsieve.models.weights import (
    PACKAGED,
    refuse_unknown,
    weights_file,
    weights_identity,
    weights_source,
)

# What torch.load raises on files that are no checkpoint, by where the nonsense hits it.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens between a decoded image and the network, as timm resolves it.

    Attributes:
        size: S.
        interpolation: Resampling of the resize, antialiased.
        crop_pct: Share of the resized image's side that the crop keeps.
        crop_mode: timm's name for how the image is resized and cropped.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
    """

    size: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def evaluation(self) -> Callable[[Image.Image], Any]:
        """Returns timm's evaluation transform: PIL image to uint8 (3, S, S)."""
        from timm.data import create_transform

        return create_transform(
            (3, self.size, self.size),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,
        )

    def training(
        self,
        crop_scale: tuple[float, float],
        flip: float,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
    ) -> Callable[[Image.Image], Any]:
        """Returns timm's training transform: crop, flip, colours, policy; to uint8 (3, S, S)."""
        from timm.data import create_transform

        return create_transform(
            (3, self.size, self.size),
            is_training=True,
            interpolation=self.interpolation,
            scale=crop_scale,
            hflip=flip,
            color_jitter=color_jitter or None,
            auto_augment=auto_augment,
            use_prefetcher=True,
        )

    def normalise(self, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Moves (B, 3, S, S) u8 to the device and scales it to the network's range, f32."""
        mean, std = _levels(self.mean, device), _levels(self.std, device)
        moved = pixels.to(device, non_blocking=True)
        return ((moved.float() - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=64)
def _levels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Per channel, in levels of 255, on the device: a copy for every batch would wait for it."""
    # Not of inference mode, whatever called first: training uses it as well.
    with torch.inference_mode(False):
        return (torch.tensor(values).view(1, -1, 1, 1) * 255).to(device)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network whose output is D features, and how to feed it.

    Attributes:
        name: timm's name.
        network: The network without classifier, in evaluation mode.
        preprocessing: As timm resolves it for this network.
        weights: Where the weights came from, for the manifest.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    weights: dict[str, str]

    @property
    def dim(self) -> int:
        """D."""
        return int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)  # type: ignore[arg-type]

    @torch.inference_mode()
    def features(
        self, pixels: torch.Tensor, device: torch.device, precision: Precision
    ) -> torch.Tensor:
        """Runs (B, 3, S, S) u8 through the network; returns (B, D) f32 on the CPU."""
        images = self.preprocessing.normalise(pixels, device)
        with autocast(precision, device):
            output: torch.Tensor = self.network(images)
        return output.float().cpu()


def load_backbone(config: EmbedConfig, device: torch.device) -> Backbone:
    """Builds the frozen feature extractor.

    Raises:
        BackboneError: timm does not know the name, the weights cannot be had, or do not fit.
    """
    network, weights = _build(config, num_classes=0)
    network.eval().requires_grad_(False)
    network.to(device).to(memory_format=torch.channels_last)
    return Backbone(config.backbone, network, _preprocessing(network, config), weights)


def load_classifier(
    config: EmbedConfig, weight_KD: torch.Tensor, bias_K: torch.Tensor, device: torch.device
) -> tuple[nn.Module, Preprocessing]:
    """Builds the same network with a linear classifier that starts from given weights.

    Args:
        config: The backbone as it was embedded.
        weight_KD: (K, D) f32.
        bias_K: (K,) f32.
        device: Where the network goes.

    Raises:
        BackboneError: As `load_backbone`, or the network's classifier is no linear layer.
    """
    network, _ = _build(config, num_classes=len(bias_K))
    head = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.weight.shape != weight_KD.shape:
        raise BackboneError(
            f"{config.backbone}: its classifier is a {type(head).__name__}, not a linear layer on "
            f"{weight_KD.shape[1]} features, so fine-tuning cannot start from the probe. "
            "Choose another backbone, or leave out --tune"
        )
    with torch.no_grad():
        head.weight.copy_(weight_KD)
        head.bias.copy_(bias_K)
    network.to(device).to(memory_format=torch.channels_last)
    return network, _preprocessing(network, config)


def _build(config: EmbedConfig, num_classes: int) -> tuple[nn.Module, dict[str, str]]:
    import timm

    refuse_unknown(config.backbone)
    file = weights_file(config)
    if file is None:
        network, matched = _from_hub(config), "name"
    else:
        network = timm.create_model(config.backbone, pretrained=False)
        matched = _load_state(network, _read_weights(file), config.backbone, file)
    source = {"source": weights_source(config), "matched_by": matched}
    weights = source | weights_identity(config)
    network.reset_classifier(num_classes)  # type: ignore[operator]
    if config.image_size is not None:
        resize_input(network, config.backbone, config.image_size)
    return network, weights


def resize_input(network: nn.Module, name: str, size: int) -> None:
    """Prepares a network for square images of another size; most take any as they are.

    Raises:
        BackboneError: It cannot take them.
    """
    if not network.pretrained_cfg["fixed_input_size"]:  # type: ignore[index]
        return
    if not hasattr(network, "set_input_size"):
        raise BackboneError(f"{name}: takes one image size only; leave out embed.image_size")
    try:
        network.set_input_size(img_size=(size, size))  # type: ignore[operator]
    except AssertionError as error:
        raise BackboneError(f"{name}: cannot take images of {size} px: {error}") from error


def _from_hub(config: EmbedConfig) -> nn.Module:
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    settings = timm.get_pretrained_cfg(config.backbone)
    if settings is None or not settings.has_weights:
        raise BackboneError(
            f"{config.backbone}: timm has no pretrained weights under this name; "
            "give a file with --checkpoint"
        )
    try:
        network: nn.Module = timm.create_model(config.backbone, pretrained=True)
    except (OSError, HfHubHTTPError) as error:
        raise BackboneError(
            f"{config.backbone}: its weights could not be fetched from the hub "
            f"({type(error).__name__}). Connect to the network once, or give a file with "
            "--checkpoint FILE; "
            f"{', '.join(PACKAGED)} needs neither"
        ) from error
    return network


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise BackboneError(f"{file}: not a safetensors file: {error}") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        raise BackboneError(f"{file}: not a checkpoint of weights alone: {error}") from error
    for wrapper in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise BackboneError(f"{file}: holds no mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _load_state(network: nn.Module, state: dict[str, torch.Tensor], name: str, file: Path) -> str:
    """Loads weights by name, or by order where other names hold the same shapes in the same order.

    The classifier may differ: it is replaced. Returns how the tensors were matched.
    """
    wanted = network.state_dict()
    # A safetensors file sorts its tensors; only a .pth keeps the order of the layers.
    ordered = file.suffix != ".safetensors" and not wanted.keys() & state.keys()
    if ordered and [x.shape for x in wanted.values()] == [x.shape for x in state.values()]:
        network.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
        return "order"
    heads = network.pretrained_cfg["classifier"]  # type: ignore[index]
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    body = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    expected = {key: value for key, value in wanted.items() if not key.startswith(prefixes)}
    missing = [key for key in expected if key not in body]
    unknown = [key for key in body if key not in expected]
    reshaped = [key for key in expected if key in body and expected[key].shape != body[key].shape]
    if missing or unknown or reshaped:
        raise BackboneError(
            f"{file}: does not fit {name}: {_few('missing', missing)}{_few('unknown', unknown)}"
            f"{_few('other shape', reshaped)}of {len(expected)} tensors. "
            "Name the backbone that this checkpoint was made with"
        )
    network.load_state_dict(body, strict=False)
    return "name"


def _few(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) "


def _preprocessing(network: nn.Module, config: EmbedConfig) -> Preprocessing:
    from timm.data import resolve_data_config

    asked = {} if config.image_size is None else {"img_size": config.image_size}
    resolved = resolve_data_config(asked, model=network)
    _, height, width = resolved["input_size"]
    if height != width:
        raise BackboneError(f"{config.backbone}: takes {height} x {width} pixels, not a square")
    return Preprocessing(
        size=height,
        interpolation=resolved["interpolation"],
        crop_pct=resolved["crop_pct"] if config.crop_pct == "timm" else config.crop_pct,
        crop_mode=resolved["crop_mode"],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
    )
