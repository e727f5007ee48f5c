"""Ready settings per data set and backbone: `--config preset:clothing1m-vit-b16`.

A preset is `turn.toml`, then a file of `datasets`, then one of `backbones`; a backbone's name alone
is a preset for any data set.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from shardsieve.errors import ConfigError

PREFIX = "preset:"
_FIRST = "turn.toml"


def preset_names() -> list[str]:
    """Names every preset: each backbone, and each data set with each backbone."""
    backbones = _stems("backbones")
    return [*backbones, *(f"{data}-{name}" for data in _stems("datasets") for name in backbones)]


def preset_toml(name: str) -> str:
    """Returns the settings of a preset as TOML, with what is known about each.

    Raises:
        ConfigError: There is no such preset.
    """
    import tomli_w

    files = _files(name)
    comments = [line for file in files for line in _read(file).splitlines() if line.startswith("#")]
    return "\n".join([*comments, "", tomli_w.dumps(read_preset(name))])


def read_preset(name: str) -> dict[str, Any]:
    """Returns the settings of a preset by section.

    Raises:
        ConfigError: There is no such preset.
    """
    tree: dict[str, Any] = {}
    for file in _files(name):
        for section, values in tomllib.loads(_read(file)).items():
            tree.setdefault(section, {}).update(values)
    return tree


def _files(name: str) -> list[str]:
    for backbone in _stems("backbones"):
        if name == backbone:
            return [_FIRST, f"backbones/{backbone}.toml"]
        data = name.removesuffix(f"-{backbone}")
        if data != name and data in _stems("datasets"):
            return [_FIRST, f"datasets/{data}.toml", f"backbones/{backbone}.toml"]
    raise ConfigError(
        f"{PREFIX}{name}: no such preset. It is DATASET-BACKBONE or BACKBONE, with data sets "
        f"{', '.join(_stems('datasets'))} and backbones {', '.join(_stems('backbones'))}"
    )


def _stems(folder: str) -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (resources.files(__name__) / folder).iterdir()
        if entry.name.endswith(".toml")
    )


def _read(file: str) -> str:
    return (resources.files(__name__) / file).read_text(encoding="utf-8")
