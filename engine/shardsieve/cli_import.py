"""`shardsieve import`: data sets as they are published become labelled shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardsieve.errors import ShardsieveError

if TYPE_CHECKING:
    from shardsieve.importers.outcome import Outcome

_KINDS = (
    "imagefolder, table, parquet, huggingface, cifar10, cifar100, clothing1m, webvision, "
    "webvision-mini, food101n, animal10n"
)


def import_(
    kind: Annotated[str, typer.Argument(help=f"Layout of the source: {_KINDS}.")],
    source: Annotated[Path, typer.Argument(help="Its folder, or the file of a table.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards.")],
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as val.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CIFAR-N: a .pt or .npy file with other labels.")
    ] = None,
    label_set: Annotated[
        str | None, typer.Option(help="CIFAR-N: which labels of that file.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Tables: column with the image, or its path.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Tables: column with the label.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Tables: class names, JSON list or one a line.")
    ] = None,
    first_label: Annotated[
        int | None, typer.Option(help="Tables: number of the first class [default: 0].")
    ] = None,
    per_shard: Annotated[int, typer.Option(help="Samples per shard.")] = 5000,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Random order; else that of the source.")
    ] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(help="More unusable entries than this is an error.")
    ] = 0.25,
    workers: Annotated[int | None, typer.Option(help="Threads that read and write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write labelled WebDataset shards from a data set as its authors publish it.

    Finished shards are kept: an interrupted import goes on where it was. Entries that cannot be
    used are listed in problems.csv beside the shards.
    """
    from shardsieve.importers.layouts import Options
    from shardsieve.importers.run import import_shards
    from shardsieve.progress import console_progress

    options = Options(split, labels, label_set, image_column, label_column, classes, first_label)
    try:
        outcome = import_shards(
            kind,
            source,
            out,
            options,
            per_shard=per_shard,
            shuffle=shuffle,
            max_bad_fraction=max_bad_fraction,
            workers=workers,
            progress=console_progress(),
        )
    except ShardsieveError as error:
        typer.echo(f"shardsieve: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("shardsieve: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(outcome.facts(), indent=2) if as_json else _summary(outcome))


def _summary(outcome: Outcome) -> str:
    reasons = ", ".join(f"{word} {count:,}" for word, count in outcome.problems.items())
    bad = sum(outcome.problems.values())
    out = outcome.out
    return "\n".join(
        [
            f"samples     {outcome.samples:>12,} in {len(outcome.shards):,} shards, "
            f"{outcome.classes:,} classes",
            f"left out    {bad:>12,}"
            + (f" ({reasons}), see {out / 'problems.csv'}" if bad else ""),
            *(f"note        {note}" for note in outcome.notes),
            f"table       {out / 'samples.parquet'}",
            f"next        shardsieve clean {out} --classes {out / 'classes.txt'} -o RUN",
        ]
    )


def add_to(app: typer.Typer) -> None:
    """Adds the verbs of this file."""
    app.command(name="import")(import_)
