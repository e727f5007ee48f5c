"""Settings as a TOML file that explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardsieve.config import Config, Section


def describe(section: type[Section]) -> dict[str, str]:
    """Returns the settings of a section with the sentence that documents each."""
    return {
        name: " ".join((field.description or "").split())
        for name, field in section.model_fields.items()
    }


def commented_toml(config: Config | None = None) -> str:
    """Returns a TOML file with every setting, its explanation, and its value commented out."""
    config = config or Config()
    lines = ["# Settings of shardsieve. Every line that is commented out shows the default."]
    tables = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            tables.append((name, value))
        else:
            lines += ["", f"# {' '.join((field.description or '').split())}", _toml(name, value)]
    for name, table in tables:
        lines += ["", f"[{name}]  # {' '.join((type(table).__doc__ or '').split())}"]
        for key, text in describe(type(table)).items():
            lines += [f"# {text}", _toml(key, getattr(table, key))]
    return "\n".join(lines) + "\n"


def _toml(name: str, value: Any) -> str:
    import tomli_w

    if value is None:
        return f"# {name} ="
    if isinstance(value, tuple):
        value = list(value)
    elif isinstance(value, Path):
        value = str(value)
    return "# " + " ".join(tomli_w.dumps({name: value}).split())
