"""`shardsieve bench`, `clean --plan` and `clean --dry-run`."""

import json

import pytest
from typer.testing import CliRunner

from shardsieve.cli import app


@pytest.fixture(scope="module")
def options(checkpoint):
    values = {
        "embed.checkpoint": checkpoint,
        "embed.image_size": 32,
        "workers": 0,
        "report.map": 0,
        "probe.epochs": 2,
    }
    chosen = [f"--set={name}={value}" for name, value in values.items()]
    return [*chosen, "--backbone", "test_resnet"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_bench_as_table_json_and_comparison(shards, options, tmp_path):
    measured = run("bench", *shards.patterns, *options, "--budget=1", "--samples=1000000", "--json")
    assert measured.exit_code == 0, measured.output
    told = json.loads(measured.stdout)
    assert told["samples"] == 1_000_000 and told["parts"]["model"] > 0
    (tmp_path / "earlier.json").write_text(measured.stdout)
    again = run(
        "bench", *shards.patterns, *options, "--budget=1", f"--compare={tmp_path / 'earlier.json'}"
    )
    assert again.exit_code == 0, again.output
    assert "<- the bottleneck" in again.stdout and "240 samples: about" in again.stdout
    assert "decode" in again.stdout and "->" in again.stdout


def test_bench_with_nothing_to_compare_to(shards, tmp_path):
    refused = run("bench", *shards.patterns, f"--compare={tmp_path / 'none.json'}")
    assert refused.exit_code == 2
    assert "cannot be read as JSON" in refused.stderr


def test_a_dry_run_makes_no_run(shards, options, tmp_path):
    done = run("clean", *shards.patterns, "-o", tmp_path / "run", *options, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "240 samples: about" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_plan_is_told_and_compared_with_what_came_of_it(shards, options, tmp_path):
    done = run("clean", *shards.patterns, "-o", tmp_path / "run", *options, "--plan")
    assert done.exit_code == 0, done.output
    assert "240 samples: about" in done.stderr
    assert "of the network's own speed" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("took ") and last.endswith(("% longer)", "% shorter)"))
    kept = json.loads((tmp_path / "run" / "forecast.json").read_text())
    assert kept["took_s"] > 0 and kept["forecast"]["samples"] == 240
