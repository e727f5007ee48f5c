"""Fine-tunings that take a second: a tiny network on tiny shards, without the rest of the line."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def make_job(shards, checkpoint, out: Path, **changes: Any):
    """A job over all samples of the shards; `changes` are settings, or fields as `job__NAME`."""
    import torch
    from safetensors.torch import save_file

    from shardsieve.config import EmbedConfig, IndexConfig, SelectConfig, TuneConfig
    from shardsieve.data.index import SampleIndex
    from shardsieve.progress import Silent
    from shardsieve.stages.index import index
    from shardsieve.tuning.job import Job, Labelled

    fields = {name[5:]: changes.pop(name) for name in list(changes) if name.startswith("job__")}
    out.mkdir(parents=True, exist_ok=True)
    folder = out.parent / "index"
    if not folder.is_dir():
        folder.mkdir()
        index(shards.paths, IndexConfig(), out=folder, progress=Silent(), backend="reference")
    samples = SampleIndex.open(folder)
    head = out.parent / "head.safetensors"
    if not head.is_file():
        generator = torch.Generator().manual_seed(1)
        weight = 0.01 * torch.randn(3, 96, generator=generator)
        save_file({"weight": weight, "bias": torch.zeros(3)}, head)
    values = {"epochs": 2, "batch_size": 16, "reselect": "never", "balance": "all", "lr": 1e-3}
    select = fields.pop("select", SelectConfig(recipe="turn", min_samples=5))
    embed = EmbedConfig(backbone="test_resnet", checkpoint=str(checkpoint), image_size=32)
    job = {
        "samples": Labelled.of(samples),
        "classes": samples.classes,
        "kept_N": samples.readable_N.copy(),
        "decided_N": np.zeros(len(samples), bool),
        "loss_N": np.full(len(samples), np.nan, np.float32),
        "beliefs": None,
        "head": head.read_bytes(),
        "config": TuneConfig(**values | changes).for_recipe(select.recipe),
        "embed": embed,
        "select": select,
        "q": 0.7,
        "validation": None,
        "out": out,
        "seed": 0,
        "precision": "fp32",
        "workers": 0,
        "backend": "reference",
    }
    return Job(**job | fields)


def run_job(job, progress=None):
    """Tunes in this process, or in those that the settings ask for."""
    import torch

    from shardsieve.progress import Silent
    from shardsieve.stages.tune import tune

    return tune(job, device=torch.device("cpu"), progress=progress or Silent())


def weights_of(job, name="model.safetensors"):
    from safetensors.torch import load_file

    return load_file(job.out / name)


def run_and_die(job, steps: int, where: str = "step") -> None:
    """Tunes, and kills this process after so many steps, or when it begins to validate."""
    from shardsieve.tuning import trainer

    if where == "step":
        count, seen = trainer.Position.count, [0]

        def watch(self, outcome):
            count(self, outcome)
            seen[0] += 1
            if seen[0] == steps:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.Position.count = watch
    else:
        trainer.accuracy_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    run_job(job)


def run_and_count(job, conn) -> None:
    """Tunes, and says how many steps that took here."""
    from shardsieve.tuning import trainer

    count, seen = trainer.Position.count, [0]

    def watch(self, outcome):
        count(self, outcome)
        seen[0] += 1

    trainer.Position.count = watch
    run_job(job)
    conn.send(seen[0])


def train_and_die_once(job, marker: Path, rank: int, steps: int, group, out: Path, progress):
    """Trains, and kills the process of that rank after so many steps; the next time it does not."""
    from shardsieve.tuning import trainer

    count, seen = trainer.Position.count, [0]

    def watch(self, outcome):
        count(self, outcome)
        seen[0] += 1
        if seen[0] == steps and group.rank == rank and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.Position.count = watch
    return trainer.train(replace(job, out=out), group, progress, 1)
