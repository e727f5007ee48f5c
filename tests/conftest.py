"""Shards and a backbone that are made in seconds, for tests of the whole line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from tiny import TinyShards, write_shards

# Before torch is loaded, here and in the processes that tests start: with tiny networks a second
# thread only waits, and where tests share a machine it waits at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the processes
# that they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="",
        help="kernel backends that must run here, as cpu,gpu: a missing one fails its tests",
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="twenty rounds of the kill test instead of five, and all tests on Ray clusters",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        skipped = pytest.mark.skip(reason="minutes on a quiet machine: run with --soak")
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(skipped)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a tiny network: enough to tell colours apart."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TinyShards:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def settings(checkpoint: Path) -> Callable[..., object]:
    """Makes a config for the tiny network; dotted names with `__` override it."""
    from shardsieve.config import Config, load_config

    def make(**changes: object) -> Config:
        values = {
            "embed.backbone": "test_resnet",
            "embed.checkpoint": str(checkpoint),
            "embed.image_size": 32,
            "embed.batch_size": 16,
            "workers": 0,
            # Drawn where a test asks for it: it costs more than all the rest of a tiny run.
            "report.map": 0,
        }
        values |= {name.replace("__", "."): value for name, value in changes.items()}
        return load_config(values=values)

    return make
