"""The command line: one verb per stage, and `clean` for all of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardsieve import (
    cli_forecast,
    cli_import,
    cli_predict,
    cli_review,
    cli_run,
    cli_setup,
)
from shardsieve.cli_engine import Address, EngineOption, RayCpus, RayWorkers, engine_of
from shardsieve.environment import set_up
from shardsieve.exits import exit_codes

if TYPE_CHECKING:
    from shardsieve.config import Config
    from shardsieve.engines.choice import Engine
    from shardsieve.run import Run

app = typer.Typer(
    name="shardsieve",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Finds the wrong labels in WebDataset shards and writes the clean samples back.",
)

Shards = Annotated[
    list[str],
    typer.Argument(help="Tars: paths, braces {0000..0019}, globs, folders, or a .txt list."),
]
RunPath = Annotated[Path, typer.Argument(help="The run directory.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run directory; made if missing.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file (see `init`), or preset:NAME (see `presets`)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting, such as probe.q=0.5."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Labels = Annotated[
    str | None,
    typer.Option(help="cls, json:FIELD, or a parquet/CSV table with key and label [default: cls]."),
]
Classes = Annotated[Path | None, typer.Option(help="Class names: JSON list or one name a line.")]
Backbone = Annotated[
    str | None, typer.Option(help="timm model name [default: tf_efficientnet_lite0].")
]
Checkpoint = Annotated[
    str | None, typer.Option(help="Weights: a .safetensors/.pth file, package:NAME or hub.")
]
Tau = Annotated[float | None, typer.Option(help="Keep samples with p_clean above [default: 0.6].")]
Removed = Annotated[
    Path | None, typer.Option(help="Also write the removed samples, into this folder.")
]
Validation = Annotated[
    list[str] | None, typer.Option("--val", help="Clean shards to validate fine-tuning on.")
]
Recipe = Annotated[str | None, typer.Option(help="best or turn [default: best].")]
Purity = Annotated[
    float | None,
    typer.Option(help="In place of tau, not with the recipe turn: share of right kept labels."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [default: auto].")]


@app.command()
def clean(
    shards: Shards,
    out: Out,
    tune: Annotated[bool, typer.Option("--tune", help="Also fine-tune on the clean set.")] = False,
    labels: Labels = None,
    classes: Classes = None,
    backbone: Backbone = None,
    checkpoint: Checkpoint = None,
    tau: Tau = None,
    target_purity: Purity = None,
    recipe: Recipe = None,
    removed: Removed = None,
    val: Validation = None,
    device: Device = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="First forecast time and disk, as `bench` does.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Forecast only, and clean nothing.")
    ] = False,
    engine: EngineOption = "local",
    address: Address = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = None,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole line: shards in, clean shards, manifest and report out.

    Stages that are up to date are not run again; an interrupted run goes on where it was.
    """
    values = {
        "index.labels": labels,
        "index.classes": classes,
        "embed.backbone": backbone,
        "embed.checkpoint": checkpoint,
        "select.recipe": recipe,
        "select.tau": tau,
        "select.target_purity": target_purity,
        "write.removed": removed,
        "tune.validation": val,
        "device": device,
    }

    if dry_run:
        with exit_codes():
            found = cli_forecast.measure(shards, _load(config, set_, values))
        cli_forecast.show(found, as_json)
        return
    off: list[str] = []

    def work() -> Run:
        from shardsieve import pipeline
        from shardsieve.progress import console_progress

        settings = _load(config, set_, values)
        if settings.tune.validation and not tune:
            typer.echo("--val without --tune only serves to find leaks; nothing is tuned", err=True)
        where = engine_of(engine, address, ray_workers, ray_cpus)
        told = console_progress()
        if not plan:
            return pipeline.clean(shards, out, settings, tune=tune, progress=told, engine=where)
        found = cli_forecast.measure(shards, settings)
        cli_forecast.tell(found)
        start = time.perf_counter()
        run = pipeline.clean(shards, out, settings, tune=tune, progress=told, engine=where)
        off.append(cli_forecast.compared(run, found, time.perf_counter() - start))
        return run

    _finish(work, as_json, lambda run: "\n".join([_summary(run), *off]))


@app.command()
def index(
    shards: Shards,
    out: Out,
    labels: Labels = None,
    classes: Classes = None,
    engine: EngineOption = "local",
    address: Address = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = None,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Find every sample, where its bytes lie and which label it was given."""
    values = {"index.labels": labels, "index.classes": classes}

    def work() -> Run:
        from shardsieve.pipeline import run_stages
        from shardsieve.progress import console_progress

        settings = _load(config, set_, values)
        where = engine_of(engine, address, ray_workers, ray_cpus)
        told = console_progress()
        return run_stages(["index"], out, settings, shards, progress=told, engine=where)

    _finish(work, as_json, _stage_summary("index"))


def _stage_command(stage: str, explanation: str) -> None:
    def command(
        run: RunPath, config: ConfigFile = None, set_: Set = None, as_json: AsJson = False
    ) -> None:
        _run_on(stage, partial(engine_of, "local", None, None, None), run, set_, config, as_json)

    app.command(name=stage, help=explanation)(command)


def _stage_command_on_engines(stage: str, explanation: str) -> None:
    def command(
        run: RunPath,
        engine: EngineOption = "local",
        address: Address = None,
        ray_workers: RayWorkers = None,
        ray_cpus: RayCpus = None,
        config: ConfigFile = None,
        set_: Set = None,
        as_json: AsJson = False,
    ) -> None:
        where = partial(engine_of, engine, address, ray_workers, ray_cpus)
        _run_on(stage, where, run, set_, config, as_json)

    app.command(name=stage, help=explanation)(command)


def _run_on(
    stage: str,
    where: Callable[[], Engine],
    run: Path,
    set_: list[str] | None,
    config: Path | None,
    as_json: bool,
) -> None:
    def work() -> Run:
        from shardsieve.pipeline import run_stages, saved_config
        from shardsieve.progress import console_progress

        settings = saved_config(run, set_ or (), config)
        return run_stages([stage], run, settings, progress=console_progress(), engine=where())

    _finish(work, as_json, _stage_summary(stage))


_stage_command_on_engines(
    "embed", "Run the frozen backbone once over every image and cache the features."
)
_stage_command_on_engines(
    "probe", "Train the linear probe on the cached features and score every sample."
)
_stage_command("select", "Fit the mixtures and decide which samples are kept.")
_stage_command_on_engines("tune", "Fine-tune the whole network on the clean samples.")
_stage_command("report", "Write the page to look at.")
cli_run.add_to(app)
cli_predict.add_to(app)
cli_review.add_to(app)
cli_import.add_to(app)
cli_setup.add_to(app)
cli_forecast.add_to(app)


@app.command()
def init() -> None:
    """Print a settings file with every setting, its meaning and its default."""
    from shardsieve.config_toml import commented_toml

    typer.echo(commented_toml(), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    typer.echo(metadata.version("shardsieve"))


def main() -> None:
    """Runs the command line; the exit code says what went wrong (see `shardsieve.errors`)."""
    set_up()
    app()


def _load(file: Path | None, overrides: list[str] | None, values: dict[str, Any]) -> Config:
    from shardsieve.config import load_config

    given = {name: value for name, value in values.items() if value not in (None, [])}
    return load_config(file, overrides or (), given)


def _finish(work: Callable[[], Run], as_json: bool, summary: Callable[[Run], str]) -> None:
    with exit_codes():
        run = work()
    if as_json:
        from shardsieve.run import manifest_json

        json.dump(manifest_json(run), sys.stdout, indent=2)
        typer.echo()
    else:
        typer.echo(summary(run))


def _summary(run: Run) -> str:
    manifest = run.manifest
    counts = manifest.counts
    assert counts is not None, "clean runs select"
    written = manifest.outputs.get("clean", [])
    lines = [
        f"in          {counts.samples_in:>12,} samples in {len(manifest.inputs):,} shards",
        f"kept        {counts.kept:>12,} ({counts.kept / max(counts.samples_in, 1):.1%})",
        *_by_reason("removed", counts.removed),
        *_by_reason("unreadable", counts.unreadable),
        f"shards      {run.path / 'clean'} ({len(written):,} tars, "
        f"{sum(shard['size_bytes'] for shard in written) / 1e6:,.1f} MB)",
        f"manifest    {run.path / 'manifest.json'}",
        f"scores      {run.path / 'select' / 'scores.parquet'}",
        f"report      {run.report}",
    ]
    if "removed" in manifest.outputs:
        lines.insert(-3, f"removed set {manifest.config['write']['removed']}")
    spent = manifest.stages["embed"].facts.get("time", {})
    if "of_model_speed" in spent:
        lines.append(
            f"embedding   {spent['bottleneck']}-bound: "
            f"{spent['of_model_speed']:.0%} of the network's own speed"
        )
    if "tune" in manifest.stages:
        lines.append(f"model       {run.model}")
    return "\n".join(lines)


def _by_reason(group: str, reasons: dict[str, int]) -> list[str]:
    detail = ", ".join(f"{word} {count:,}" for word, count in reasons.items())
    total = f"{group:<11} {sum(reasons.values()):>12,}"
    return [f"{total} ({detail})" if detail else total]


def _stage_summary(stage: str) -> Callable[[Run], str]:
    def summary(run: Run) -> str:
        record = run.manifest.stages[stage]
        counts = ", ".join(f"{name} {count:,}" for name, count in record.counts.items())
        return f"{stage}: {counts}"

    return summary
