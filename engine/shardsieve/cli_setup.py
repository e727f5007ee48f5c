"""What comes along, what the machine can do, and what everything is called."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from shardsieve.errors import ShardsieveError


def presets(
    name: Annotated[str | None, typer.Argument(help="Print the settings of this one.")] = None,
) -> None:
    """List ready settings per data set and backbone, for `--config preset:NAME`."""
    from shardsieve.presets import preset_names, preset_toml

    try:
        typer.echo("\n".join(preset_names()) if name is None else preset_toml(name))
    except ShardsieveError as error:
        typer.echo(f"shardsieve: {error}", err=True)
        raise typer.Exit(error.exit_code) from error


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what this machine can do, and what is missing with the line that installs it.

    The exit code is 1 when something is missing that `shardsieve clean` needs.
    """
    from shardsieve.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark = "yes" if finding.works else "NO" if finding.needed else "no"
            typer.echo(f"{mark:<4}{finding.what:<{width + 2}}{finding.detail}")
            if finding.remedy:
                typer.echo(f"{'':<{width + 6}}-> {finding.remedy}")
    if any(finding.needed and not finding.works for finding in findings):
        raise typer.Exit(1)


def reference(context: typer.Context) -> None:
    """Print every setting, command, reason and exit code with its meaning, as Markdown."""
    from shardsieve.reference import reference as page

    typer.echo(page(context.find_root().command), nl=False)


def add_to(app: typer.Typer) -> None:
    """Adds the verbs of this file."""
    app.command()(presets)
    app.command()(doctor)
    app.command()(reference)
