"""The verbs for looking and objecting: `review`, `decisions`, `export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shardsieve.exits import exit_codes

RunPath = Annotated[Path, typer.Argument(help="The run directory.")]

decisions = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Take decisions about samples out of a run as CSV, or into it.",
)


class Tool(StrEnum):
    """Whose format is written."""

    FIFTYONE = "fiftyone"
    CLEANLAB = "cleanlab"
    LABEL_STUDIO = "label-studio"


class Which(StrEnum):
    """Which samples are written."""

    REMOVED = "removed"
    DECIDED = "decided"
    JUDGED = "judged"


def add_to(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command()(review)
    app.command()(export)
    app.add_typer(decisions, name="decisions")


def review(
    run: RunPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Also open the page in the browser.")
    ] = False,
) -> None:
    """Look at the samples in a browser on this machine, and keep, drop or relabel them.

    Decisions lie in RUN/decisions.jsonl. `shardsieve select RUN` and `shardsieve write RUN` follow
    them, as does the next `clean`.
    """
    with exit_codes():
        from shardsieve.review.server import ReviewServer

        server = ReviewServer(run, port)
    if server.log.torn:
        typer.echo("the last decision had not been saved whole and is left out", err=True)
    typer.echo(f"{server.url}\nOnly this machine can open it. Ctrl-C ends it.")
    if open_browser:
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    typer.echo(
        f"{len(server.log.standing):,} decisions in {run / 'decisions.jsonl'}; "
        f"`shardsieve select {run}` and `shardsieve write {run}` follow them"
    )


@decisions.command("export")
def export_csv(
    run: RunPath,
    file: Annotated[Path, typer.Argument(help="The CSV file to write.")],
) -> None:
    """Write the decisions that stand as CSV."""
    with exit_codes():
        from shardsieve.review.tables import export_decisions

        typer.echo(f"{export_decisions(run, file):,} decisions in {file}")


@decisions.command("import")
def import_csv(
    run: RunPath,
    file: Annotated[Path, typer.Argument(help="CSV with the columns key and decision.")],
) -> None:
    """Take over decisions from CSV, all of them or none.

    Columns: key, decision (keep, drop, relabel, none); and, where needed, shard (its file name),
    label (the new class, for relabel), offset, given, time.
    """
    with exit_codes():
        from shardsieve.review.tables import import_decisions
        from shardsieve.run import open_run

        count = import_decisions(run, open_run(run).index, file)
        typer.echo(f"{count:,} decisions taken over into {run / 'decisions.jsonl'}")


def export(
    run: RunPath,
    to: Annotated[Tool, typer.Option(help="Whose format.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder; for cleanlab a .csv or .parquet file.")
    ],
    only: Annotated[
        Which, typer.Option(help="Which samples; for cleanlab always all.")
    ] = Which.REMOVED,
) -> None:
    """Write the samples with scores and decisions for FiftyOne, cleanlab or Label Studio."""
    with exit_codes():
        from shardsieve.review import exports

        if to is Tool.CLEANLAB:
            count = exports.export_cleanlab(run, out)
        elif to is Tool.FIFTYONE:
            count = exports.export_fiftyone(run, out, only.value)
        else:
            count = exports.export_label_studio(run, out, only.value)
        typer.echo(f"{count:,} samples in {out}")
