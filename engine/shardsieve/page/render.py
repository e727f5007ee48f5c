"""Numbers and figures to one HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def render(context: Mapping[str, Any]) -> str:
    """Fills the template; everything but figures is escaped, and no script but ours may run."""
    script = files("shardsieve.page").joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page: str = (
        _environment()
        .get_template("report.html.j2")
        .render(context, script=script, script_hash=f"sha256-{digest}")
    )
    return page


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shardsieve", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=show_number,
        percent=show_percent,
        size=show_size,
        duration=show_duration,
        p=show_p,
        plural=show_plural,
    )
    return environment


def show_number(value: int) -> str:
    """Returns 1234567 as 1,234,567."""
    return f"{value:,}"


def show_plural(count: int, one: str, many: str | None = None) -> str:
    """Returns `1 class`, `2 classes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def show_percent(share: float) -> str:
    """Returns a share as a percentage, and never 0 % or 100 % for what is not quite that."""
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        return "< 0.1 %"
    if text == "100.0" and share < 1:
        return "> 99.9 %"
    return f"{text} %"


def show_size(size_bytes: int) -> str:
    """Returns bytes in the largest decimal unit of which there is one."""
    power = 0 if size_bytes < 1000 else min(int(math.log10(size_bytes)) // 3, len(_UNITS) - 1)
    number = f"{size_bytes:,}" if power == 0 else f"{size_bytes / 1000**power:.1f}"
    return f"{number} {_UNITS[power]}"


def show_duration(seconds: float) -> str:
    """Returns seconds as a person would say them."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def show_p(probability: float) -> str:
    """Returns a probability; the smallest ones only as small."""
    return "< 0.0001" if probability < 0.0001 else f"{probability:.4f}"
