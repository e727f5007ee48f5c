import subprocess
import sys

import pytest
from bench import __main__ as bench_cli
from bench.gpu_check import GPU_RUNS, count_tests
from bench.registry import RUNS, load
from typer.testing import CliRunner

run = CliRunner().invoke

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="x">long</failure></testcase>
<testcase classname="a" name="broken"><error message="x"/></testcase>
<testcase classname="a" name="left"><skipped message="x"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_counted_and_failures_named():
    assert count_tests(REPORT) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["a::bad", "a::broken"],
    }


def test_without_a_gpu_nothing_runs_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(bench_cli, "why_unavailable", lambda name: f"no {name} here")
    done = run(bench_cli.app, ["gpu-check"])
    assert done.exit_code == 4
    assert "gpu-check: nothing was run: no gpu here" in done.output


def test_a_backend_that_must_run_fails_where_it_cannot():
    command = [sys.executable, "-m", "pytest", "-q", "--backends=cpu,gpu", "-p", "no:cacheprovider"]
    command += ["tests/kernels/test_softmax_stats.py", "-k", "input_is_left_alone"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    from shardsieve_kernels import why_unavailable

    reason = why_unavailable("gpu")
    assert done.returncode == (0 if reason is None else 1), done.stdout
    assert reason is None or f"backend gpu must run here: {reason}" in done.stdout


@pytest.mark.parametrize("name", RUNS)
def test_every_measurement_offers_what_the_command_calls(name):
    module = load(name)
    assert callable(module.measure) and callable(module.describe)
    if name in GPU_RUNS:
        assert callable(module.measure_gpu) and callable(module.goals_gpu)


def test_measurements_for_the_gpu_are_listed_for_the_cpu_as_well():
    assert set(GPU_RUNS) <= set(RUNS)


def test_a_quick_run_is_never_recorded():
    done = run(bench_cli.app, ["run", next(iter(RUNS)), "--quick", "--record"])
    assert done.exit_code == 2
    assert "not recorded" in done.output


def test_an_unknown_measurement_says_which_exist():
    done = run(bench_cli.app, ["run", "abacus"])
    assert done.exit_code == 2
    assert next(iter(RUNS)) in done.output


def test_parts_of_the_gpu_check_are_named(monkeypatch):
    done = run(bench_cli.app, ["gpu-check", "--only", "embedding"])
    assert done.exit_code == 2
    assert "there are: tests, class_gmm" in done.output
    monkeypatch.setattr(bench_cli, "why_unavailable", lambda name: None)
    called = []
    monkeypatch.setattr(bench_cli.check, "run_tests", lambda: called.append("tests"))
    monkeypatch.setattr(
        bench_cli.check,
        "run_measurement",
        lambda name, **how: called.append(name) or {"a goal": name == "embed"},
    )
    assert run(bench_cli.app, ["gpu-check", "--only", "embed"]).exit_code == 0
    assert run(bench_cli.app, ["gpu-check", "--only", "tune"]).exit_code == 1
    assert called == ["embed", "tune"]
