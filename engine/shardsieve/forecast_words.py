"""A forecast in words: as a table, beside an earlier one, and beside what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardsieve.errors import DataError
from shardsieve.forecast import Forecast


def compare(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Says how the rates of two forecasts differ, and what else does.

    Args:
        now: `Forecast.to_json`.
        earlier: The same of an earlier one.

    Raises:
        DataError: The earlier one is none.
    """
    try:
        before = {part: float(rate) for part, rate in earlier["parts"].items()}
        settings, machine = earlier["settings"], earlier["machine"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            "what it should be compared to is not what `shardsieve bench --json` printed"
        ) from error
    lines = [
        f"{part:<8} {before[part]:>12,.1f} -> {rate:>12,.1f} samples/s ({rate / before[part]:.2f}x)"
        for part, rate in now["parts"].items()
        if before.get(part)
    ]
    for what, old, new in (
        ("settings", settings, now["settings"]),
        ("machine", machine, now["machine"]),
    ):
        other = [
            f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]
        ]
        if other:
            lines.append(f"other {what}: {', '.join(other)}")
    return lines


def in_words(found: Forecast) -> str:
    """Returns the forecast as a table."""
    chosen = found.settings
    lines = [
        f"{chosen['backbone']} at {chosen['image_size']} px, {chosen['engine']} "
        f"{chosen['precision']}, batches of {chosen['batch_size']}; "
        f"measured on {found.measured:,} samples",
        f"{'':<8} {'samples/s':>12}",
        *(
            f"{part:<8} {rate:>12,.1f}" + ("  <- the bottleneck" * (part == found.bottleneck))
            for part, rate in found.parts.items()
        ),
        f"images are embedded at {found.of_model_speed:.0%} of the network's own speed",
        f"clean    {found.samples:>12,} samples: about {_duration(found.seconds)}, "
        f"{found.size_bytes / 1e6:,.0f} MB of disk (fine-tuning not counted)",
    ]
    return "\n".join(lines)


def how_far_off(found: Forecast, took_s: float) -> str:
    """Says how a forecast compares with what a run in the same process took."""
    off = took_s / max(found.warm_seconds, 1e-9) - 1
    return (
        f"took {took_s:,.1f} s, forecast {found.warm_seconds:,.1f} s "
        f"({abs(off):.0%} {'longer' if off > 0 else 'shorter'})"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:,.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"
