"""`shardsieve predict`: what a fine-tuned model says of other shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shardsieve.exits import exit_codes


def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of `tune`, or its run.")],
    shards: Annotated[
        list[str],
        typer.Argument(help="Tars: paths, braces {0000..0019}, globs, folders, or a .txt list."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The parquet file.")],
    labels: Annotated[
        str, typer.Option(help="cls, json:FIELD, or a table with key and label, if there are any.")
    ] = "cls",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Classify the images of shards with a fine-tuned model, into a parquet table."""
    from shardsieve.predictions import predict as classify
    from shardsieve.progress import console_progress

    with exit_codes():
        done = classify(
            model,
            shards,
            out,
            labels=labels,
            device=device,
            batch_size=batch_size,
            progress=console_progress(),
        )
    tree = {
        "predictions": str(done.path),
        "samples": done.samples,
        "unreadable": done.unreadable,
        "labelled": done.labelled,
        "accuracy": done.accuracy,
    }
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
        return
    right = (
        "" if done.accuracy is None else f", {done.accuracy:.1%} of {done.labelled:,} as labelled"
    )
    bad = f", {done.unreadable:,} cannot be read" if done.unreadable else ""
    typer.echo(f"{done.path}: {done.samples:,} samples{right}{bad}")


def add_to(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command()(predict)
