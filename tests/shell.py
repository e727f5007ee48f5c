"""Commands of the docs: those that can be run are run, the others must at least parse.

`shardsieve` is called in this process, which has torch loaded; all else goes to bash.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import typer.main
from blocks import ROOT
from typer.testing import CliRunner

from shardsieve.cli import app
from shardsieve.config import load_config

_OPERATORS = {"|", "||", "&", "&&", ";", "<", ">>"}
_COMPLETION = {"--install-completion", "--show-completion"}
_FUNCTION = f'shardsieve() {{ "{sys.executable}" -m shardsieve "$@"; }}\n'


def words(command: str, folder: Path) -> list[str]:
    """Splits a command as bash does: quotes, braces, globs."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split("\0")[:-1]


def run(command: str, folder: Path) -> str:
    """Runs a command in a folder and returns what it printed.

    Raises:
        AssertionError: It failed; the message has what it said.
    """
    tokens = list(shlex.shlex(command, posix=True, punctuation_chars=True))
    if command.startswith("shardsieve review "):
        return _serve(command, folder)
    if not command.startswith("shardsieve ") or _OPERATORS & set(tokens):
        return _bash(command, folder)
    command, _, file = command.partition(" > ")
    done = CliRunner().invoke(app, words(command, folder)[1:])
    said = done.output if done.exception is None else f"{done.output}\n{done.exception!r}"
    assert done.exit_code == 0, f"{command}\nexit code {done.exit_code}\n{said}"
    if file:
        (folder / file.strip()).write_text(done.stdout, encoding="utf-8")
        return ""
    return done.stdout


def _environment() -> dict[str, str]:
    """Returns an environment in which other processes use the code that is tested here."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'engine'}:{ROOT / 'kernels'}"}


def _bash(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _FUNCTION + command],
        cwd=folder, env=_environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\nexit code {done.returncode}\n{done.stderr}"
    return done.stdout


def _serve(command: str, folder: Path) -> str:
    """Starts a review, opens its page as a browser would, and ends it as Ctrl-C does."""
    arguments = words(command, folder)[1:]
    server = subprocess.Popen(
        [sys.executable, "-m", "shardsieve", *arguments],
        cwd=folder, env=_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address:
            raise AssertionError(f"{command}: no address\n{server.communicate(timeout=30)[1]}")
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert "<html" in answer.read().decode()
        server.send_signal(signal.SIGINT)
        said, complaint = server.communicate(timeout=30)
        assert server.returncode == 0, complaint
    finally:
        server.kill()
        server.communicate()
    return f"{address}\n{said}"


def check_parses(command: str, folder: Path) -> None:
    """Fails unless a command is one: the program is known, and so is each of its options."""
    arguments = words(command.partition(" > ")[0], folder)
    while arguments and re.match(r"[A-Z_]+=", arguments[0]):
        arguments.pop(0)
    if arguments[0] == "shardsieve":
        _parse_shardsieve(arguments[1:])
    elif arguments[0] == "pip":
        _parse_pip(arguments[1:])
    elif arguments[0] == "make":
        _parse_make(arguments[1:])
    elif arguments[:3] == ["python", "-m", "bench"]:
        _parse_bench(arguments[3:])
    else:
        raise AssertionError(f"{command}: nothing here knows how to check {arguments[0]!r}")


def _parse_shardsieve(arguments: list[str]) -> None:
    command, name = typer.main.get_command(app), "shardsieve"
    while hasattr(command, "commands") and arguments:
        name, *arguments = arguments
        assert name in command.commands, f"there is no verb {name}"
        command = command.commands[name]
    with command.make_context(name, arguments) as context:
        values = context.params
    if "set_" in values:
        load_config(values.get("config"), values["set_"] or ())


def _parse_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in [argument for argument in arguments[1:] if argument[0] != "-"]:
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?", package).groups()
        known = {".", project["name"]} | {
            re.match(r"[\w-]+", line)[0]
            for lines in [project["dependencies"], *project["optional-dependencies"].values()]
            for line in lines
        }
        assert name in known, f"{name} is no package that the project names"
        for extra in (extras or "").split(",") if extras else ():
            assert extra in project["optional-dependencies"], f"there is no extra {extra}"


def _parse_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        wanted = rf"^{name} [:?]?=" if equals else rf"^{name}:"
        assert re.search(wanted, makefile, re.MULTILINE), f"the Makefile has no {name}"


def _parse_bench(arguments: list[str]) -> None:
    from bench.__main__ import app as bench
    from bench.registry import RUNS

    name, *rest = arguments
    command = typer.main.get_command(bench).commands[name]
    with command.make_context(name, rest) as context:
        if name == "run":
            assert context.params["name"] in RUNS


def expected_in(said: str, shown: str) -> list[str]:
    """Returns the lines of `shown` that `said` has none like, numbers and spaces apart."""

    def shape(line: str) -> str:
        return re.sub(r"\d[\d,.]*", "0", " ".join(line.split()))

    printed = {shape(line) for line in said.splitlines()}
    return [line for line in shown.splitlines() if line.strip() and shape(line) not in printed]


def check_options(code: str) -> None:
    """Fails unless the verb and the options of a command in running text exist.

    What it is applied to may be missing there, or a placeholder.
    """
    command, arguments = typer.main.get_command(app), shlex.split(code)[1:]
    while hasattr(command, "commands") and arguments and arguments[0][0] != "-":
        assert arguments[0] in command.commands, f"{code}: there is no verb {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for option in [argument for argument in arguments if re.match("--?[a-z]", argument)]:
        assert option in known or option in _COMPLETION, f"{code}: there is no option {option}"


def paths_of(layout: str) -> list[str]:
    """Returns the paths that a drawn tree of folders names: indented ones lie in the one above."""
    paths, above = [], ""
    for line in layout.splitlines():
        entries = re.split(r" {2,}", line.strip())
        if line[:1] not in ("", " "):
            above = entries[0].partition(" ")[0]
            paths.append(above)
        else:
            named = itertools.takewhile(re.compile(r"[\w./-]+(\.\w+|/)").fullmatch, entries)
            paths += [above + entry for entry in named]
    return paths
