"""docs/reproduce.md: every command is one, its options exist and its presets load."""

import re
import shlex
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import typer.main

from shardsieve.cli import app
from shardsieve.config import load_config
from shardsieve.importers.layouts import LAYOUTS

TEXT = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


def parsed(command: str) -> tuple[str, dict]:
    program, verb, *arguments = shlex.split(command)
    assert program == "shardsieve"
    group = typer.main.get_command(app)
    with group.commands[verb].make_context(verb, arguments) as context:
        return verb, context.params


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one(command):
    verb, values = parsed(command)
    if verb == "import":
        layout = LAYOUTS[values["kind"]]
        assert values["split"] is None or values["split"] in layout.splits
        assert values["labels"] is None or "labels" in layout.takes
    else:
        load_config(values["config"], values["set_"] or ())


def test_what_is_cleaned_was_imported_and_what_is_imported_is_used():
    made = {str(values["out"]) for verb, values in map(parsed, COMMANDS) if verb == "import"}
    used = set()
    for verb, values in map(parsed, COMMANDS):
        if verb == "clean":
            used |= {*values["shards"], *(values["val"] or ())}
            assert str(values["classes"].parent) in values["shards"]
    assert used <= made
    # Imported to score the selection by, not to train or validate on.
    assert made - used == {"food/verified"}


def test_planted_noise_is_what_it_says(tmp_path, monkeypatch):
    (script,) = [block for kind, block in BLOCKS if kind == "python"]
    folder = tmp_path / "cifar100" / "train"
    folder.mkdir(parents=True)
    keys = [f"train-{row:08d}" for row in range(20_000)]
    true = [row % 100 for row in range(20_000)]
    pq.write_table(pa.table({"key": keys, "label": true}), folder / "samples.parquet")
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(script), {})
    table = pyarrow.csv.read_csv("sym90.csv")
    assert table.column("key").to_pylist() == keys
    wrong = sum(a != b for a, b in zip(table.column("label").to_pylist(), true, strict=True))
    assert wrong / 20_000 == pytest.approx(0.891, abs=0.01)
