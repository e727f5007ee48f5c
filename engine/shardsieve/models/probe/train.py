"""Training linear heads on cached features, several at once: one call for all solvers.

Shapes: N samples, R rows trained on, D features, H heads, K classes, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardsieve.config import ProbeConfig
from shardsieve.errors import DataError
from shardsieve.models.probe.batches import Batches, Resident, fits_on, make_batches
from shardsieve.models.probe.gradient import LossGradient, rows_at_once
from shardsieve.models.probe.heads import Heads, HeadSpec
from shardsieve.models.probe.minibatch import start_weights, train_minibatch
from shardsieve.models.probe.mm import Passes, train_mm
from shardsieve.models.probe.ridge import measure_moments, solve_ridge
from shardsieve.models.probe.scaling import fit_scaling
from shardsieve.models.probe.source import FeatureSource, as_source
from shardsieve.models.probe.targets import Targets
from shardsieve.models.probe.together import ALONE, Together
from shardsieve_kernels import Backend

CPU = torch.device("cpu")


def head_specs(config: ProbeConfig) -> list[HeadSpec]:
    """Returns the heads of a run: one that sees everything, then one per fold."""
    q = config.q if config.loss == "gce" else 0.0
    return [
        HeadSpec(q, config.lr, config.weight_decay, config.l2, fold)
        for fold in (None, *range(config.folds))
    ]


def train_heads(
    features: FeatureSource | npt.NDArray[Any],
    label_N: npt.NDArray[np.integer[Any]],
    specs: Sequence[HeadSpec],
    config: ProbeConfig,
    *,
    n_classes: int,
    rows: npt.NDArray[np.int64] | None = None,
    fold_N: npt.NDArray[np.integer[Any]] | None = None,
    weight: npt.NDArray[np.floating[Any]] | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    backend: Backend = "cpu",
    on_epoch: Callable[[Heads, int], None] | None = None,
    advance: Callable[[int], None] | None = None,
    group: Together = ALONE,
) -> tuple[Heads, npt.NDArray[np.float64]]:
    """Trains H heads side by side: a pass over the features serves all of them.

    Memory beside the parameters: a block of features (256 MB at most; on a GPU all of them as f16
    if they fit), the logits of a piece of a batch, and with `mm` 4 bytes per row and head.

    Args:
        features: A store, or an array of (N, D) floats.
        label_N: (N,) class numbers.
        specs: What each head is trained with.
        config: Solver, epochs, batch size and scaling; `loss`, `q`, `lr`, `weight_decay`, `l2` and
            `folds` are those of the specs instead.
        n_classes: K.
        rows: (R,) rows that may be trained on, ascending; None is all.
        fold_N: (N,) fold of each sample, needed if a spec names a fold.
        weight: (N,) or (H, N) weights of the samples, not negative; None is 1.
        seed: Of the shuffles of `minibatch`.
        device: Where the arithmetic runs.
        backend: Which kernels run.
        on_epoch: Called after each epoch (round of `mm`, once for `ridge`) with the heads as they
            are and the number of the epoch; they change afterwards.
        advance: Called with numbers of samples that add up to at most epochs x R.
        group: Processes that train the same heads with `minibatch`. Each has samples of its own,
            which are all that its other arguments are about, and as many as the others or one less;
            all get the same heads and curve.

    Returns:
        The heads, and their (E, H) curve: `minibatch`: mean loss during each epoch; `mm`: penalised
        mean loss before the first and after each round; `ridge`: nothing, E = 0.

    Raises:
        ValueError: Labels, folds or weights that do not fit.
        DataError: Training diverged.
    """
    source = as_source(features)
    rows = np.arange(len(source)) if rows is None else rows
    _check(source, label_N, specs, rows, n_classes, fold_N, weight)
    longest = _longest(len(rows), config, group)
    scaling = fit_scaling(source, rows, config.normalise, device, group)
    piece_rows = rows_at_once(len(specs) * n_classes, device)
    if config.solver != "minibatch" and device.type == "cpu":
        # Every piece adds a D x D product to sums in f64.
        piece_rows *= 4
    batches = make_batches(
        source,
        rows,
        scaling,
        batch_size=config.batch_size / group.world,
        piece_rows=piece_rows,
        seed=seed,
        device=device,
        resident=_all_fit(source, rows, device, group),
        longest=longest,
    )
    targets = Targets(
        label_N[rows],
        None if fold_N is None else fold_N[rows],
        None if weight is None else weight[..., rows].T,
        specs,
        order=batches.order if isinstance(batches, Resident) else None,
        device=device,
    )
    parameters = start_weights(specs, source.dim, n_classes).to(device)
    view = parameters.view(-1, len(specs), n_classes)
    heads = Heads(view[:-1], view[-1], scaling)
    curve = _solve(
        parameters,
        batches,
        targets,
        specs,
        config,
        backend,
        on_epoch=lambda epoch: on_epoch(heads, epoch) if on_epoch else None,
        advance=advance or (lambda amount: None),
        n_rows=len(rows),
        group=group,
    )
    if not (np.isfinite(curve).all() and torch.isfinite(parameters).all()):
        raise DataError(
            f"the probe's training diverged (loss per epoch: {curve[:3, 0].tolist()} ...); "
            f"lower probe.lr ({config.lr}), or scale the features"
        )
    return heads, curve


def _solve(
    parameters: torch.Tensor,
    batches: Batches,
    targets: Targets,
    specs: Sequence[HeadSpec],
    config: ProbeConfig,
    backend: Backend,
    *,
    on_epoch: Callable[[int], None],
    advance: Callable[[int], None],
    n_rows: int,
    group: Together,
) -> npt.NDArray[np.float64]:
    dim, n_classes = len(parameters) - 1, parameters.shape[1] // len(specs)
    device = parameters.device
    q_H = torch.tensor([spec.q for spec in specs], dtype=torch.float32, device=device)
    if config.solver == "minibatch":
        losses = LossGradient(q_H, n_classes, dtype=batches.dtype, backend=backend)
        curve = train_minibatch(
            parameters,
            batches,
            targets,
            losses,
            specs,
            epochs=config.epochs,
            on_epoch=on_epoch,
            advance=advance,
            group=group,
        )
        return curve.cpu().numpy()
    moments = measure_moments(batches, targets, specs, dim, n_classes, device, advance)
    solve_ridge(moments, batches, targets, parameters)
    if config.solver == "ridge":
        on_epoch(0)
        return np.empty((0, len(specs)))
    losses = LossGradient(q_H, n_classes, dtype=torch.float32, backend=backend)
    passes = Passes(batches, targets, losses, specs, n_rows, n_classes)

    def on_round(number: int) -> None:
        if number:
            advance(n_rows)
        on_epoch(number)

    curve = train_mm(parameters, passes, moments[0], rounds=config.epochs, on_round=on_round)
    return curve.cpu().numpy()


def _all_fit(
    source: FeatureSource, rows: npt.NDArray[np.int64], device: torch.device, group: Together
) -> bool:
    """Returns whether the features of each process fit on its device.

    Those that stream take other steps, and all must take the same.
    """
    too_many = not fits_on(device, len(rows), source.dim)
    return not group.sum_(torch.tensor([float(too_many)]))


def _longest(n_rows: int, config: ProbeConfig, group: Together) -> int:
    """Returns how many rows the process has that has most."""
    if group.world == 1:
        return n_rows
    if config.solver != "minibatch":
        raise ValueError(f"several processes train with minibatch, not with {config.solver}")
    counts = torch.zeros(group.world, dtype=torch.float64)
    counts[group.rank] = n_rows
    counts = group.sum_(counts)
    longest = int(counts.max())
    if int(counts.min()) < longest - 1:
        raise ValueError(f"processes must have equally many rows, found {counts.tolist()}")
    return longest


def _check(
    source: FeatureSource,
    label_N: npt.NDArray[Any],
    specs: Sequence[HeadSpec],
    rows: npt.NDArray[np.int64],
    n_classes: int,
    fold_N: npt.NDArray[Any] | None,
    weight: npt.NDArray[Any] | None,
) -> None:
    if not len(specs) or not len(rows):
        raise ValueError("training needs at least one head and one sample")
    if len(label_N) != len(source):
        raise ValueError(f"{len(label_N)} labels for {len(source)} samples")
    low, high = int(label_N[rows].min()), int(label_N[rows].max())
    if low < 0 or high >= n_classes:
        raise ValueError(f"labels must lie in [0, {n_classes}), found {low} to {high}")
    if not all(0 <= spec.q <= 1 for spec in specs):
        raise ValueError(f"q must lie in [0, 1], found {[spec.q for spec in specs]}")
    if fold_N is None and any(spec.fold is not None for spec in specs):
        raise ValueError("a head leaves out a fold, but fold_N was not given")
    if fold_N is not None and len(fold_N) != len(source):
        raise ValueError(f"{len(fold_N)} folds for {len(source)} samples")
    if weight is None:
        return
    if weight.shape not in ((len(source),), (len(specs), len(source))):
        raise ValueError(
            f"weight must be ({len(source)},) or ({len(specs)}, {len(source)}), "
            f"found {weight.shape}"
        )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weights must be finite and not negative")
