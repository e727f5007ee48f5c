"""Killed in the middle of embed, the same command goes on, and nothing shows that it happened."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import write_shards

import shardsieve
from shardsieve.config import load_config

# Four processes that load torch and timm, one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("many"), n_shards=8, per_shard=40)


SETTINGS = {"embed.image_size": 192, "embed.batch_size": 8, "workers": 1}


def command(shards, checkpoint, out):
    return [
        *(sys.executable, "-m", "shardsieve", "clean", *shards.patterns, "-o", str(out)),
        *("--backbone", "test_resnet", "--checkpoint", str(checkpoint)),
        *(word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")),
    ]


def again(shards, checkpoint, out):
    """The same in this process, which has torch and timm loaded already."""
    weights = {"embed.backbone": "test_resnet", "embed.checkpoint": str(checkpoint)}
    return shardsieve.clean(shards.patterns, out, load_config(values=SETTINGS | weights))


def files_of(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("index", "embed", "probe", "select", "clean")
        for path in sorted((out / folder).rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


@pytest.fixture(scope="module")
def undisturbed(many, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "RUN"
    again(many, checkpoint, out)
    return files_of(out)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=lambda sign: sign.name)
def test_interrupted_embed_goes_on(many, checkpoint, undisturbed, tmp_path, sign):
    out = tmp_path / "RUN"
    process = subprocess.Popen(
        command(many, checkpoint, out), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    part = out / "embed.part"
    deadline = time.monotonic() + 90
    while len(list(part.glob("features-*.arrow"))) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "embed never finished two shards"
        time.sleep(0.01)
    # As a terminal does: to the process and its workers.
    os.killpg(process.pid, sign)
    _, told = process.communicate(timeout=60)
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in told
        assert "Traceback" not in told
    finished = {path.name: path.stat().st_mtime_ns for path in part.glob("features-*.arrow")}
    assert 2 <= len(finished) < len(many.paths), "it was to be caught in the middle"

    again(many, checkpoint, out)
    after = {name: (out / "embed" / name).stat().st_mtime_ns for name in finished}
    assert after == finished, "finished shards are not done again"
    assert files_of(out) == undisturbed
    assert not list(out.rglob("*.part"))
