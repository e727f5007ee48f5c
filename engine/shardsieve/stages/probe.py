"""probe: FeatureStore -> LossTable. A linear classifier that resists wrong labels.

Shapes: N samples, R rows trained on.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.numpy import save_file

from shardsieve.config import AnyBackend, ProbeConfig
from shardsieve.data.features import FeatureStore, check_shard
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason
from shardsieve.data.record import RECORD, StageResult
from shardsieve.data.table import read_ipc, write_ipc
from shardsieve.engines.executor import Executor
from shardsieve.engines.processes import Group
from shardsieve.errors import DataError
from shardsieve.models.probe import draw_folds, head_specs, score, train_heads
from shardsieve.models.probe.source import Window
from shardsieve.progress import Progress
from shardsieve.tuning.randomness import threads_of
from shardsieve_kernels import Backend, resolve_backend

_LOSSES = "losses.arrow"


def probe(
    index: SampleIndex,
    features: FeatureStore,
    config: ProbeConfig,
    *,
    out: Path,
    seed: int,
    device: torch.device,
    backend: Backend,
    progress: Progress,
) -> StageResult:
    """Trains the linear probe and scores every sample with it.

    TURN step 1: generalized cross entropy with q = 0.7 for 20 epochs on frozen features. With
    `config.folds` = k, k more heads are trained beside it in the same passes, and each sample is
    scored by the one that never saw it.

    Args:
        index: The samples and their labels.
        features: Their features.
        config: Solver, loss, epochs, scaling, folds.
        out: Folder that gets `losses.arrow` and `head.safetensors`.
        seed: Of shuffles and folds.
        device: Where the arithmetic runs.
        backend: Which kernels run.
        progress: Where to report.

    Raises:
        DataError: No sample is readable, or fewer than folds; or training diverged.
    """
    rows = _usable_rows(index, features)
    part = _Part(0, len(index), rows)
    return _train(index, features, rows, part, config, out, seed, backend, Group(device), progress)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where every process finds what it needs.

    Attributes:
        index: Folder of the index.
        features: Folder of the features.
        out: Folder of the results.
        records: Contents of the records in the first two.
    """

    index: Path
    features: Path
    out: Path
    records: tuple[str, ...]

    @classmethod
    def of(cls, index: Path, features: Path, out: Path) -> Inputs:
        """Takes the folders of two finished stages, and that of this one."""
        places = index.resolve(), features.resolve()
        return cls(*places, out.resolve(), tuple((place / RECORD).read_text() for place in places))

    def refuse_if_not_here(self, processes: int, out: Path) -> None:
        """Makes sure that this machine sees these very folders.

        Args:
            processes: How many there are.
            out: Where this one is told to write: elsewhere than all others where it does not see
                their disk.

        Raises:
            DataError: It does not, or others under the same names.
        """
        seen = out.resolve() == self.out
        for folder, record in zip((self.index, self.features), self.records, strict=True):
            file = folder / RECORD
            if not seen or not file.is_file() or file.read_text() != record:
                raise DataError(
                    f"probe.processes = {processes}: {folder} is not to be seen from "
                    f"{socket.gethostname()}. Features are not sent: put the run directory on a "
                    "disk that all workers share, or set probe.processes = 1"
                )


def probe_together(
    inputs: Inputs,
    config: ProbeConfig,
    *,
    seed: int,
    device: torch.device,
    backend: AnyBackend,
    progress: Progress,
    executor: Executor,
) -> StageResult:
    """Trains the probe in several processes, each of which reads a part of the features alone.

    A part is a run of samples. A step follows the gradient of a batch that all processes bring a
    share of (data parallel), so that all have the same heads, and each scores its own part.

    Args:
        inputs: The run's folders, which every process must see; `out` gets `losses.arrow` and
            `head.safetensors`.
        config: As for `probe`; `processes` says how many.
        seed: Of shuffles and folds.
        device: Where the arithmetic runs; one of its kind for each process.
        backend: Which kernels run; `auto`: what each process can have.
        progress: Where to report.
        executor: Who starts the processes.

    Raises:
        DataError: As `probe`; or a process does not see the folders, or features are damaged.
        ConfigError: One device was named.
        DeviceUnavailable: There are fewer GPUs.
        BackendUnavailable: Kernels that were asked for cannot run there.
    """
    training = partial(_in_process, inputs, config, seed, backend, threads_of(config.processes))
    return executor.together("probe", training, config.processes, device, inputs.out, progress)


def _in_process(
    inputs: Inputs,
    config: ProbeConfig,
    seed: int,
    backend: AnyBackend,
    threads: int,
    group: Group,
    out: Path,
    progress: Progress,
) -> StageResult:
    inputs.refuse_if_not_here(config.processes, out)
    if group.device.type == "cpu":
        if "numba" not in sys.modules:
            # Numba hands its number of threads on to the OpenMP library that torch shares.
            os.environ["NUMBA_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        if backend == "auto":
            backend = "cpu"
    kernels = resolve_backend(backend)
    index = SampleIndex.open(inputs.index)
    features = FeatureStore.open(inputs.features, len(index.shards))
    rows = _usable_rows(index, features)
    if len(rows) < group.world:
        raise DataError(f"probe.processes = {group.world}: only {len(rows)} samples are readable")
    part = _Part.of(rows, len(index), group)
    first, last = np.searchsorted(features.starts, [part.start, part.stop - 1], side="right") - 1
    for shard in range(int(first), int(last) + 1):
        check_shard(inputs.features, shard)
    return _train(index, features, rows, part, config, out, seed, kernels, group, progress)


@dataclass(frozen=True, slots=True)
class _Part:
    """A run of samples that one process trains on and scores.

    Attributes:
        start: Its first sample.
        stop: The sample after its last one.
        rows: Those of its samples that can be trained on, numbered from `start`.
    """

    start: int
    stop: int
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64], n_samples: int, group: Group) -> _Part:
        """Returns the part of one process: as many usable rows as the others, or one less."""
        low, high = (len(rows) * rank // group.world for rank in (group.rank, group.rank + 1))
        start = int(rows[low]) if group.rank else 0
        stop = int(rows[high]) if high < len(rows) else n_samples
        return cls(start, stop, rows[low:high] - start)


def _usable_rows(index: SampleIndex, features: FeatureStore) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(index.readable_N & (features.reason_N == Reason.KEPT))
    if not len(rows):
        raise DataError("no sample has both an image that decodes and a label: nothing to learn")
    return rows


def _train(
    index: SampleIndex,
    features: FeatureStore,
    rows: npt.NDArray[np.int64],
    part: _Part,
    config: ProbeConfig,
    out: Path,
    seed: int,
    backend: Backend,
    group: Group,
    progress: Progress,
) -> StageResult:
    samples = slice(part.start, part.stop)
    fold_N = draw_folds(rows, len(index), config.folds, seed)[samples]
    label_N = index.label_N[samples]
    source = features if group.world == 1 else Window(features, part.start, part.stop)
    epochs = 1 if config.solver == "ridge" else config.epochs
    with progress.track("probe", epochs * len(part.rows) * group.world, "samples") as advance:
        heads, curve = train_heads(
            source,
            label_N,
            head_specs(config),
            config,
            n_classes=index.n_classes,
            rows=part.rows,
            fold_N=fold_N,
            seed=seed,
            device=group.device,
            backend=backend,
            advance=lambda amount: advance(amount * group.world),
            group=group,
        )
    losses = score(source, part.rows, label_N, fold_N, heads, group.device, backend)
    agree = np.count_nonzero(losses.pred_N[part.rows] == label_N[part.rows])
    agreeing = group.sum_(torch.tensor([float(agree)], dtype=torch.float64))
    _write(losses, out, group)
    if group.leads:
        weight_KD, bias_K = heads.folded(0)
        save_file(
            {"weight": weight_KD.cpu().numpy(), "bias": bias_K.cpu().numpy()},
            out / "head.safetensors",
        )
    facts = {
        "training_loss": curve[:, 0].tolist(),
        "agrees_with_label": float(agreeing) / len(rows),
        "classes": index.n_classes,
    }
    if group.world > 1:
        facts["processes"] = group.world
    return StageResult(counts={"samples": len(index), "scored": len(rows)}, facts=facts)


def _write(losses: LossTable, out: Path, group: Group) -> None:
    """Writes the losses of all parts, one after the other, as one table."""
    if group.world == 1:
        losses.write(out / _LOSSES)
        return
    parts = [out / f"losses-{rank:04d}.part" for rank in range(group.world)]
    losses.write(parts[group.rank])
    # Nobody has passed this before all have come to it.
    group.sum_(torch.zeros(1))
    if group.leads:
        write_ipc(out / _LOSSES, pa.concat_tables([read_ipc(file) for file in parts]))
        for file in parts:
            file.unlink()
