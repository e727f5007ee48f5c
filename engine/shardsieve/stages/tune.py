"""tune: clean samples -> a fine-tuned network, read straight from the original shards.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shardsieve.data.reason import Reason
from shardsieve.data.record import StageResult
from shardsieve.data.scores import Suggestions
from shardsieve.engines.executor import Executor
from shardsieve.engines.local import Local
from shardsieve.engines.processes import Group, check_batch_norm
from shardsieve.errors import ConfigError, DataError
from shardsieve.progress import Progress
from shardsieve.tuning.job import Beliefs, Job
from shardsieve.tuning.randomness import threads_of
from shardsieve.tuning.trainer import train


def tune(
    job: Job, *, device: torch.device, progress: Progress, executor: Executor | None = None
) -> StageResult:
    """Fine-tunes a network on the clean samples, in one process or several.

    It goes on from what an interrupted call left in `job.out`.

    Args:
        job: Samples, labels and settings.
        device: Where the network runs; with several processes, the kind of device.
        progress: Where to report. Several processes of this machine report to the terminal, if
            anywhere.
        executor: Who starts the processes; default: this one.

    Raises:
        DataError: No sample is clean, or there is nothing to validate on.
        ConfigError: Processes, device and settings do not go together.
        BackboneError: The network has no linear classifier.
    """
    if job.validation is not None and not job.validation.usable_N.any():
        raise DataError("the validation shards hold no sample with an image and a label")
    if not job.kept_N.any():
        raise DataError("no sample is clean, so there is nothing to fine-tune on; lower select.tau")
    processes = job.config.processes
    check_batch_norm(processes, device, job.config.batch_norm)
    # Counted here, as other machines may have more: the last bits of a sum depend on it.
    call = partial(_in_process, job, threads_of(processes))
    result = (executor or Local()).together("tune", call, processes, device, job.out, progress)
    if job.validation is not None:
        unusable = int(np.count_nonzero(~job.validation.usable_N))
        if unusable:
            result.notes.append(
                f"{unusable:,} of {len(job.validation):,} validation samples have no image or label"
            )
    return result


def _in_process(job: Job, threads: int, group: Group, out: Path, progress: Progress) -> StageResult:
    return train(replace(job, out=out), group, progress, threads)


def with_suggestions(job: Job, suggestions: Suggestions) -> Job:
    """Returns the job with the labels that its `config.labels` asks for.

    `corrected`: samples that the recipe removed become clean ones under the suggested label, where
    its confidence is above `config.correct_above`. `soft`: the recipe's probabilities become the
    targets, but for labels that people decided on.

    Raises:
        ConfigError: The recipe is one that suggests nothing.
    """
    config = job.config
    if config.labels == "given":
        return job
    if job.select.recipe != "best":
        raise ConfigError(
            f"tune.labels = {config.labels} needs a selection that suggests labels; "
            "select.recipe = best does"
        )
    if config.labels == "soft":
        given_N = np.where(job.decided_N, np.nan, suggestions.p_clean_N).astype(np.float32)
        beliefs = Beliefs(given_N, suggestions.suggested_N, suggestions.confidence_N)
        return replace(job, beliefs=beliefs)
    sure_N = (
        (suggestions.reason_N == Reason.HIGH_LOSS)
        & (suggestions.suggested_N >= 0)
        & (suggestions.confidence_N > config.correct_above)
        & job.samples.usable_N
    )
    label_N = np.where(sure_N, suggestions.suggested_N, job.samples.label_N).astype(np.int32)
    return replace(job, samples=replace(job.samples, label_N=label_N), kept_N=job.kept_N | sure_N)
