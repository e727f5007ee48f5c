"""Killed at any moment of any stage, the same command goes on, and nothing shows that it happened.

A round kills the command once in every stage of one run, at moments drawn at random: after so many
operations on files (made, renamed, deleted), which finds the narrow places of a commit, or after
some time, which finds the computing between them. Five rounds always, twenty with `--soak`.
"""

import hashlib
import json
import multiprocessing
import random
import signal
from pathlib import Path

import pytest
from killed import line
from tiny import write_shards

# A round is a whole run and some seven starts.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOLDERS = {
    **{name: name for name in ("index", "embed", "probe", "select")},
    "write": "clean",
    "tune": "tune",
    "report": "report",
}


class Command:
    """Starts the command from a process that has loaded torch and run nothing."""

    def __init__(self, shards, checkpoint):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["shardsieve.pipeline", "shardsieve.stages.embed", "shardsieve.stages.probe",
             "shardsieve.stages.tune", "shardsieve.page.figures", "timm", "killed"]
        )  # fmt: skip
        self._given = (shards.patterns, checkpoint)

    def run(self, out, kill=None):
        """Returns whether it came to its end."""
        receiver, sender = self._context.Pipe(duplex=False)
        removed = str(out / "removed")
        process = self._context.Process(
            target=line, args=(*self._given, removed, out, sender, kill)
        )
        process.start()
        sender.close()
        process.join(300)
        assert not process.is_alive(), "it hangs"
        finished = process.exitcode == 0
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        if finished:
            assert receiver.recv() == "finished"
        receiver.close()
        return finished


def content_of(path):
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    return json.dumps([row | {"seconds": None, "waiting_seconds": None} for row in rows]).encode()


def files_of(out):
    """Hashes of everything but what says when, and how long it took."""
    return {
        str(path.relative_to(out)): hashlib.sha256(content_of(path)).hexdigest()
        for folder in (*FOLDERS.values(), "removed")
        for path in sorted((out / folder).rglob("*"))
        if path.is_file() and path.name not in ("stage.json", "report.html", "removed-from.txt")
    }


@pytest.fixture(scope="module")
def command(checkpoint, tmp_path_factory):
    shards = write_shards(tmp_path_factory.mktemp("killed"), n_shards=3, per_shard=40)
    return Command(shards, checkpoint)


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "RUN"
    assert command.run(out)
    records = {folder: out / folder / "stage.json" for folder in FOLDERS.values()}
    seconds = {folder: json.loads(file.read_text())["seconds"] for folder, file in records.items()}
    return files_of(out), seconds


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(20 if metafunc.config.getoption("--soak") else 5))


def test_killed_once_in_every_stage(command, undisturbed, tmp_path, seed):
    expected, seconds = undisturbed
    rng = random.Random(seed)
    out = tmp_path / "RUN"
    kills = 0
    for folder in FOLDERS.values():
        # Every stage has at least seven such operations.
        by_count = rng.random() < 0.7
        moment = (folder, rng.randint(1, 7) if by_count else None, rng.random() * seconds[folder])
        if not command.run(out, moment):
            kills += 1
    assert command.run(out)
    # Only the last one, and only by time, may come to its end first.
    assert kills >= len(FOLDERS) - 1, "hardly ever caught at work"
    assert files_of(out) == expected
    assert not [path for path in out.rglob("*") if ".part" in path.name]
    from shardsieve.verify import verify

    assert verify(Path(out)).problems == []
