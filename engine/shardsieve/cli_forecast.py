"""`shardsieve bench`: how fast this machine cleans these shards, and how long all will take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardsieve.exits import exit_codes

if TYPE_CHECKING:
    from shardsieve.config import Config
    from shardsieve.forecast import Forecast
    from shardsieve.run import Run


def bench(
    shards: Annotated[list[str], typer.Argument(help="As for `clean`.")],
    backbone: Annotated[str | None, typer.Option(help="timm model name.")] = None,
    labels: Annotated[str | None, typer.Option(help="As for `clean`.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Forecast for so many [default: what the shards hold]."),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1, help="Seconds that the longest measurement may take, about.")
    ] = 45.0,
    compare: Annotated[
        Path | None, typer.Option(help="What an earlier `bench --json` printed, to compare with.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML file with settings, or preset:NAME.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure this machine on these shards, and forecast time and disk of cleaning them."""
    from shardsieve.config import load_config

    with exit_codes():
        given = {"embed.backbone": backbone, "index.labels": labels}
        values = {name: value for name, value in given.items() if value is not None}
        settings = load_config(config, set_ or (), values)
        earlier = None if compare is None else _earlier(compare)
        found = measure(shards, settings, samples, budget)
        differences = [] if earlier is None else _compare(found, earlier)
    show(found, as_json, differences)


def show(found: Forecast, as_json: bool, differences: Sequence[str] = ()) -> None:
    """Prints a forecast on standard output."""
    from shardsieve.forecast_words import in_words

    if as_json:
        typer.echo(json.dumps(found.to_json() | {"compared": list(differences)}, indent=2))
    else:
        typer.echo("\n".join([in_words(found), *differences]))


def tell(found: Forecast) -> None:
    """Says a forecast on standard error: the run's result follows on the other."""
    from shardsieve.forecast_words import in_words

    typer.echo(in_words(found), err=True)


def compared(run: Run, found: Forecast, took_s: float) -> str:
    """Keeps forecast and outcome as `forecast.json` in the run, and says how far off it was."""
    from shardsieve.data.table import write_text
    from shardsieve.forecast_words import how_far_off

    told = {"took_s": round(took_s, 1), "forecast": found.to_json()}
    write_text(run.path / "forecast.json", json.dumps(told, indent=2))
    return how_far_off(found, took_s)


def measure(
    shards: list[str], settings: Config, samples: int | None = None, budget_s: float = 45.0
) -> Forecast:
    """Forecasts, and says on standard error what goes on."""
    from shardsieve.forecast import forecast
    from shardsieve.progress import console_progress

    return forecast(
        shards, settings, samples=samples, budget_s=budget_s, progress=console_progress()
    )


def _earlier(file: Path) -> Any:
    from shardsieve.errors import ConfigError

    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--compare {file}: cannot be read as JSON: {error}") from error


def _compare(found: Forecast, earlier: Any) -> list[str]:
    from shardsieve.forecast_words import compare

    return compare(found.to_json(), earlier)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command()(bench)
