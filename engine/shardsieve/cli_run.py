"""Verbs that look at a finished run: what would be written, is it whole, why did a sample go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve.cli_engine import Address, EngineOption, RayCpus, RayWorkers, engine_of
from shardsieve.exits import exit_codes

RunPath = Annotated[Path, typer.Argument(help="The run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting, by its dotted name."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with settings.")]


def write(
    run: RunPath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would come out, and write nothing.")
    ] = False,
    engine: EngineOption = "local",
    address: Address = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = None,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write the filtered shards, bytes unchanged."""
    from shardsieve.pipeline import plan_write, run_stages, saved_config
    from shardsieve.progress import console_progress

    with exit_codes():
        settings = saved_config(run, set_ or (), config)
        if dry_run:
            planned = plan_write(run, settings)
            _print(planned, as_json, _planned_in_words(planned))
            return
        where = engine_of(engine, address, ray_workers, ray_cpus)
        done = run_stages(["write"], run, settings, progress=console_progress(), engine=where)
        _print_stage(done, "write", as_json)


def verify(run: RunPath, as_json: AsJson = False) -> None:
    """Check every count and hash of a run again; exit with 3 and a list if anything is off."""
    from shardsieve.progress import console_progress
    from shardsieve.verify import verify as check

    with exit_codes():
        findings = check(run, progress=console_progress())
    looked_at = ", ".join(f"{amount:,} {what}" for what, amount in findings.checked.items())
    if as_json:
        _print({"checked": findings.checked, "problems": findings.problems}, True, "")
    elif not findings.problems:
        typer.echo(f"verified: {looked_at}")
    if findings.problems:
        for problem in findings.problems:
            typer.echo(problem, err=True)
        typer.echo(
            f"shardsieve: {len(findings.problems):,} problems ({looked_at} checked)", err=True
        )
        raise typer.Exit(3)


def explain(
    run: RunPath,
    key: Annotated[str, typer.Argument(help="The sample's key, as in scores.parquet.")],
    as_json: AsJson = False,
) -> None:
    """Say why a sample was kept or went, and where it lies."""
    from shardsieve.explain import explain as explain_key
    from shardsieve.explain import in_words

    with exit_codes():
        samples = explain_key(run, key)
    _print(samples, as_json, "\n".join(in_words(sample) for sample in samples))


def reselect(
    run: RunPath,
    tau: Annotated[float | None, typer.Option(help="Keep samples with p_clean above.")] = None,
    set_: Set = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also write shards and report again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Select again with other select.* settings, from the cached losses: no image is read."""
    from shardsieve.errors import ConfigError
    from shardsieve.pipeline import run_stages, saved_config
    from shardsieve.progress import console_progress
    from shardsieve.rundir import RunDir

    with exit_codes():
        given = [*(set_ or ()), *([f"select.tau={tau}"] if tau is not None else [])]
        other = [text for text in given if not text.strip().startswith("select.")]
        if other:
            raise ConfigError(
                f"--set {other[0]}: reselect changes select.* only; use `clean` for the others"
            )
        before = RunDir(run).record("select")
        names = ["select", *(["write", "report"] if write else [])]
        done = run_stages(names, run, saved_config(run, given, None), progress=console_progress())
        _print_stage(done, "select", as_json)
        if before is not None and not as_json:
            typer.echo(f"kept before: {before.counts['kept']:,}")
        if not write and not as_json:
            typer.echo("the shards are those of the selection before; --write writes them again")


def _planned_in_words(planned: dict[str, Any]) -> str:
    lines = []
    for name in [name for name in ("clean", "removed") if name in planned]:
        told = planned[name]
        lines.append(
            f"{name:<11} {told['samples']:>12,} samples in {told['shards']:,} shards, "
            f"{told['size_bytes'] / 1e6:,.1f} MB"
        )
        lines += [
            f"  {row['class']:<20} {row['samples']:>10,} {row['size_bytes'] / 1e6:>12,.1f} MB"
            for row in told["classes"]
        ]
    if planned["over_quota"]:
        lines.append(f"over quota  {planned['over_quota']:>12,} clean samples are left out")
    return "\n".join([*lines, "nothing was written (--dry-run)"])


def _print_stage(run: Any, stage: str, as_json: bool) -> None:
    from shardsieve.run import manifest_json

    counts = run.manifest.stages[stage].counts
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    _print(manifest_json(run) if as_json else None, as_json, f"{stage}: {text}")


def _print(tree: Any, as_json: bool, text: str) -> None:
    if as_json:
        json.dump(tree, sys.stdout, indent=2)
        typer.echo()
    else:
        typer.echo(text)


def add_to(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    for command in (write, verify, explain, reselect):
        app.command()(command)
