"""A fine-tuned network as a file: weights, and what one must know to use them.

Shapes: K classes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from shardsieve.config import EmbedConfig
from shardsieve.data.table import replace_file
from shardsieve.errors import BackboneError
from shardsieve.models.backbone import Preprocessing, resize_input
from shardsieve.models.weights import in_order, refuse_unknown


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A network that says which class an image shows.

    Attributes:
        network: In evaluation mode, K logits.
        preprocessing: How images reach it.
        classes: K names.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]


def save_tuned(
    path: Path,
    network: nn.Module,
    embed: EmbedConfig,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    epoch: int,
) -> None:
    """Writes weights that `timm.create_model(..., checkpoint_path=...)` loads, whole or not at all.

    The metadata, all text: `architecture` (timm's name), `image_size`, `classes` (JSON list, label
    i is the i-th name), `label_mapping` (JSON, name to label), `preprocessing` and `timm` (JSON;
    the latter is the `config.json` that timm expects beside a model on the hub), `epoch` and
    `shardsieve` (its version).
    """
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    about = {
        "format": "pt",
        "architecture": embed.backbone,
        "image_size": str(preprocessing.size),
        "classes": json.dumps(classes),
        "label_mapping": json.dumps({name: label for label, name in enumerate(classes)}),
        "preprocessing": json.dumps(dataclasses.asdict(preprocessing)),
        "timm": json.dumps(_hub_config(embed, preprocessing, classes)),
        "epoch": str(epoch),
        "shardsieve": metadata.version("shardsieve"),
    }
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(in_order(save(state, metadata=about)))
    replace_file(temporary, path)


def _hub_config(
    embed: EmbedConfig, preprocessing: Preprocessing, classes: tuple[str, ...]
) -> dict[str, Any]:
    architecture, _, tag = embed.backbone.partition(".")
    how = dataclasses.asdict(preprocessing)
    size = how.pop("size")
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": {
            "tag": tag,
            "input_size": [3, size, size],
            "num_classes": len(classes),
            **how,
        },
    }


def load_tuned(path: Path, device: torch.device) -> TunedModel:
    """Loads what `save_tuned` wrote.

    Raises:
        BackboneError: The file is not there, or no model that shardsieve tuned.
    """
    if not path.is_file():
        raise BackboneError(f"{path}: there is no such model; `shardsieve tune` makes one")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        state = load_file(path)
    except SafetensorError as error:
        raise BackboneError(f"{path}: not a safetensors file: {error}") from error
    needed = ("architecture", "classes", "preprocessing")
    missing = [name for name in needed if name not in about]
    if missing:
        raise BackboneError(
            f"{path}: its metadata has no {' and no '.join(missing)}; "
            "give the model.safetensors of `shardsieve tune`"
        )
    classes = tuple(json.loads(about["classes"]))
    how = json.loads(about["preprocessing"])
    how |= {"mean": tuple(how["mean"]), "std": tuple(how["std"])}
    preprocessing = Preprocessing(**how)
    network = _network(about["architecture"], len(classes), preprocessing.size)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BackboneError(f"{path}: does not fit {about['architecture']}: {error}") from error
    network.eval().requires_grad_(False)
    network.to(device).to(memory_format=torch.channels_last)
    return TunedModel(network, preprocessing, classes)


def _network(architecture: str, n_classes: int, size: int) -> nn.Module:
    import timm

    refuse_unknown(architecture)
    network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=n_classes)
    resize_input(network, architecture, size)
    return network
