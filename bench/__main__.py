"""`python -m bench`: the demo and recorded measurements."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from bench import data as datasets
from bench import gpu_check as check
from bench.demo import describe, run_line
from bench.record import update_readme, write_record
from bench.registry import RUNS, load
from shardsieve.errors import ShardsieveError
from shardsieve.progress import console_progress
from shardsieve_kernels import why_unavailable

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where data and run go.")] = Path(".demo"),
    data: Annotated[
        Path | None, typer.Option(help="Folder with train-*.tar; default: scikit-learn's digits.")
    ] = None,
    record: Annotated[
        str | None, typer.Option(help="Write bench/records/<date>-NAME from what was seen.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Run the whole line on real images and say how right it was."""
    name = "digits" if data is None else data.resolve().name
    shards = datasets.from_folder(data) if data else datasets.digits(out / "digits-shards")
    run = out / f"{name}-run"
    try:
        result = run_line(shards, run, console_progress())
    except ShardsieveError as error:
        typer.echo(f"demo: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    if record is not None:
        typer.echo(f"record: {write_record(record, {**result, 'data': name})}", err=True)
    typer.echo(json.dumps(result, indent=2) if as_json else describe(result, run))


@app.command("fashion-mnist")
def fashion_mnist(
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    source: Annotated[
        Path, typer.Option(help="Folder with the *-ubyte.gz files.")
    ] = datasets.FASHION_MNIST,
) -> None:
    """Write a part of Fashion-MNIST as shards, for `demo --data` and `quality --data`."""
    try:
        shards = datasets.fashion_mnist(out, source)
    except ShardsieveError as error:
        typer.echo(f"fashion-mnist: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    typer.echo(f"{shards.name}: {', '.join((*shards.train, *shards.validation))}")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Which measurement; `list` shows them.")],
    quick: Annotated[bool, typer.Option(help="Small inputs, to see that it works.")] = False,
    record: Annotated[bool, typer.Option(help="Write bench/records/<date>-NAME.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder with shards, for measurements that take one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Check, then measure, one part of shardsieve beside what people use instead."""
    if name not in RUNS:
        raise typer.BadParameter(f"there are: {', '.join(RUNS)}", param_hint="NAME")
    if quick and record:
        raise typer.BadParameter("figures of small inputs mean nothing and are not recorded")
    measurement = load(name)
    if data is not None and "data" not in signature(measurement.measure).parameters:
        raise typer.BadParameter(f"{name} makes its own data", param_hint="--data")
    result = measurement.measure(quick=quick, **({"data": data} if data is not None else {}))
    if record:
        file = write_record(name, result, result["repeats"])
        if (draw := getattr(measurement, "draw", None)) is not None:
            draw(result, file.parent / f"{name}.png")
        typer.echo(f"record: {file}", err=True)
    typer.echo(json.dumps(result, indent=2) if as_json else measurement.describe(result))


@app.command("list")
def list_runs() -> None:
    """List the measurements."""
    for name, what in RUNS.items():
        typer.echo(f"{name:20} {what}")


@app.command()
def quality(
    out: Annotated[Path, typer.Option(help="Where features and rows go.")] = Path(".quality"),
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with shards (and maybe truth.parquet); may be given again."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of everything random.")] = 5,
    cell: Annotated[
        list[str] | None, typer.Option(help="Only these cells, such as `asymmetric 0.4`.")
    ] = None,
    subset: Annotated[int | None, typer.Option(min=100, help="At most this many images.")] = None,
    accuracy: Annotated[bool, typer.Option(help="Train probes on what each method keeps.")] = True,
    minutes: Annotated[float, typer.Option(help="Stop before a cell once this has passed.")] = 60,
    quick: Annotated[bool, typer.Option(help="Digits, three cells, one seed.")] = False,
    with_digits: Annotated[
        bool, typer.Option("--digits/--no-digits", help="Also scikit-learn's digits.")
    ] = True,
    record: Annotated[
        bool,
        typer.Option(help="Write bench/records/<date>-quality; with --no-digits, -quality-DATA."),
    ] = False,
) -> None:
    """Compare `best` and `turn` with what else a user could run, on planted and human noise."""
    # cleanlab and pandas take seconds to load.
    from bench import quality as table
    from bench.quality_data import digits, folder
    from bench.quality_data import subset as cut
    from bench.quality_report import describe, summarise
    from bench.quality_view import draw

    out.mkdir(parents=True, exist_ok=True)
    progress = console_progress()
    if (quick and not with_digits) or not (with_digits or data):
        raise typer.BadParameter("there is nothing else to run on", param_hint="--no-digits")
    sets = [digits(out, progress)] if with_digits else []
    if not quick:
        sets += [folder(path, out, progress) for path in data or ()]
    if subset is not None:
        sets = [cut(images, subset) for images in sets]
    wanted = {"symmetric 0.4", "asymmetric 0.4", "instance 0.4"} if quick else set(cell or ())
    rows = table.run_cells(
        sets,
        out / ("quick.jsonl" if quick else "rows.jsonl"),
        seeds=1 if quick else seeds,
        only=lambda cell: not wanted or cell.name in wanted,
        accuracy=accuracy,
        budget_s=60 * minutes,
        note=lambda text: typer.echo(text, err=True),
    )
    summary = summarise(rows)
    if record:
        others = [] if with_digits else [path.resolve().name for path in data or ()]
        file = write_record("-".join(["quality", *others]), summary, summary["seeds"])
        draw(summary, file.parent / "quality.svg")
        typer.echo(f"record: {file}", err=True)
    typer.echo(describe(summary))


@app.command("gpu-check")
def gpu_check(
    quick: Annotated[bool, typer.Option(help="Small inputs, and no records.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"tests, or one of {', '.join(check.GPU_RUNS)}; may be given again."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with train-*.tar, test-*.tar, truth.parquet: the whole line."),
    ] = None,
) -> None:
    """Run all tests and measurements of the GPU backend and write the records of both."""
    parts = ("tests", *check.GPU_RUNS)
    if unknown := set(only or ()) - set(parts):
        raise typer.BadParameter(f"there are: {', '.join(parts)}", param_hint=sorted(unknown)[0])
    if data is not None and (missing := check.missing_in(data)):
        raise typer.BadParameter(f"{data} has no {', no '.join(missing)}", param_hint="--data")
    reason = why_unavailable("gpu")
    if reason is not None:
        typer.echo(f"gpu-check: nothing was run: {reason}", err=True)
        raise typer.Exit(4)
    failed = 0
    if not only or "tests" in only:
        tests = check.run_tests()
        typer.echo(f"tests: {tests['passed']} passed, {tests['failed']} failed")
        failed += tests["exit_code"] != 0
    for name in check.GPU_RUNS:
        if only and name not in only:
            continue
        goals = check.run_measurement(name, quick=quick, record=not quick, data=data)
        for goal, met in goals.items():
            typer.echo(f"{name}: {'met' if met else 'MISSED'}: {goal}")
            failed += not met
    if failed:
        raise typer.Exit(1)


@app.command()
def figures(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/images"),
) -> None:
    """Draw the pictures of docs/concepts.md anew, from a run on scikit-learn's digits."""
    from bench.figures import write_figures

    for file in write_figures(out, console_progress()):
        typer.echo(f"{file} {file.stat().st_size / 1000:.0f} kB")


@app.command()
def screenshots(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/images"),
) -> None:
    """Take the pictures of the report that the docs show, from a run."""
    from bench.screenshots import photograph

    for file in photograph(run / "report" / "report.html", out):
        typer.echo(f"{file} {file.stat().st_size / 1000:.0f} kB")


@app.command()
def readme() -> None:
    """Write the figures in README.md and the docs anew from the records."""
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        update_readme(page)


if __name__ == "__main__":
    app()
