"""The command line as a user meets it: in a process of its own."""

import json
import subprocess
import sys
import time

import pytest

TINY = ["--set", "embed.image_size=32", "--set", "workers=0", "--backbone", "test_resnet"]


def shardsieve(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "shardsieve", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def test_help_is_quick_and_loads_no_torch():
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = shardsieve("--help")
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0
    for verb in ("clean", "index", "embed", "probe", "select", "tune", "write", "report"):
        assert verb in done.stdout
    # The best of three: other work on the machine is not what is measured.
    assert min(seconds) < 0.4
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "shardsieve", "--help"],
        capture_output=True,
        text=True,
    ).stderr
    assert "shardsieve.cli" in loaded
    for heavy in ("torch", "numpy", "pyarrow", "numba", "timm", "pydantic"):
        assert f" {heavy}\n" not in loaded


@pytest.mark.parametrize(
    "verb", ["clean", "index", "embed", "probe", "select", "tune", "write", "report", "init"]
)
def test_each_verb_has_help(verb):
    from typer.testing import CliRunner

    from shardsieve.cli import app

    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.timeout(300)
def test_clean_prints_json_on_stdout_and_progress_on_stderr(shards, checkpoint, tmp_path):
    done = shardsieve(
        "clean", *shards.patterns, "-o", tmp_path / "RUN", "--checkpoint", checkpoint, *TINY,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    counts = result["counts"]
    removed, unreadable = sum(counts["removed"].values()), sum(counts["unreadable"].values())
    assert counts["samples_in"] == counts["kept"] + removed + unreadable == 240
    assert result["run"] == str(tmp_path / "RUN")
    assert "embed: 240/240 images in" in done.stderr
    assert "\x1b" not in done.stderr, "no terminal codes in a log"

    second = shardsieve(
        "clean", *shards.patterns, "-o", tmp_path / "RUN", "--checkpoint", checkpoint, *TINY
    )
    assert second.stderr.count("up to date") == 6
    assert "kept" in second.stdout and "report.html" in second.stdout

    # Single verbs read the settings of the run.
    third = shardsieve("select", tmp_path / "RUN", "--set", "select.tau=0.9")
    assert third.returncode == 0, third.stderr
    assert "select.tau" not in third.stderr
    assert "tau: 0.6 -> 0.9" in third.stderr
    fourth = shardsieve("write", tmp_path / "RUN", "--json")
    assert json.loads(fourth.stdout)["config"]["select"]["tau"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["clean", "nowhere.tar", "-o", "RUN"], 3, "1 of 1 shards are missing"),
        (["clean", "x.tar", "-o", "RUN", "--set", "probe.epoch=3"], 2, "no such setting"),
        (["clean", "x.tar", "-o", "RUN", "--config", "nope.toml"], 2, "cannot read the settings"),
        (["embed", "RUN"], 5, "no run here"),
        (["clean", "x.tar", "-o", "RUN", "--device", "cuda"], 4, "CUDA"),
    ],
    ids=["missing-shard", "unknown-key", "no-config", "no-run", "no-gpu"],
)
def test_errors_are_one_line_and_a_code(tmp_path, arguments, code, says):
    if code == 4:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU, so asking for one is no error")
        (tmp_path / "x.tar").touch()
    done = shardsieve(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("shardsieve: ")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert done.stdout == ""


def test_init_prints_settings_that_parse(tmp_path):
    done = shardsieve("init")
    file = tmp_path / "settings.toml"
    file.write_text(done.stdout)
    from shardsieve.config import Config, load_config

    assert load_config(file) == Config()


def test_bars_on_a_terminal():
    import os
    import pty

    script = (
        "from shardsieve.progress import console_progress as c\n"
        "import time\n"
        "with c().track('embed', 100, 'images') as advance:\n"
        "    for _ in range(4):\n"
        "        time.sleep(0.15); advance(25)\n"
    )
    main, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stderr=child, stdout=child)
    process.wait(timeout=60)
    os.close(child)
    told = os.read(main, 100_000).decode()
    os.close(main)
    assert "embed" in told
    assert "100/100" in told
    assert "images/s" in told
