"""The linear probe beside scikit-learn's LogisticRegression and a plain PyTorch loop.

All on one thread, in CPU seconds: where cores are shared, threads that wait count, too.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.probe_classes import DIM, Q, make_classes
from bench.probe_gpu import goals_gpu, measure_gpu
from bench.timing import cost, in_new_process
from shardsieve.config import ProbeConfig
from shardsieve.models.probe import Heads, HeadSpec, train_heads
from shardsieve.models.probe.gradient import LossGradient, rows_at_once

__all__ = ["describe", "goals_gpu", "measure", "measure_gpu"]

# The setting for haste: large batches, longer steps. The default is ProbeConfig's.
FAST = {"batch_size": 8192, "lr": 4e-3}
ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def measure(*, quick: bool) -> dict[str, Any]:
    """Times an epoch, the way to the same accuracy, and 16 heads beside one."""
    n_train, n_classes = (8192, 20) if quick else (100_000, 100)
    check_gradient()
    shapes = {"14 classes": (n_train, 14), f"{n_classes} classes": (n_train // 4, n_classes)}
    return {
        "repeats": 3,
        "threads": 1,
        "race": in_new_process(_race, n_train, n_classes, quick, environment=ONE_THREAD)[0],
        "sixteen": {
            name: in_new_process(_sixteen, *shape, environment=ONE_THREAD)[0]
            for name, shape in shapes.items()
        },
    }


def describe(result: dict[str, Any]) -> str:
    """Says what an epoch costs, and how soon each is as right as the PyTorch loop."""
    race = result["race"]
    lines = [
        f"{race['samples']:,} x {race['dim']} features, {race['classes']} classes, "
        f"{race['noise']:.0%} of the labels wrong; CPU seconds on one thread",
        f"  product of matrices      {race['gemm_gflops']:6.1f} GFLOP/s",
        f"  PyTorch loop      epoch  {race['torch']['epoch_cpu_s']:7.2f}"
        f"   accuracy {max(race['torch']['accuracy']):.3f} "
        f"after {race['torch']['total_cpu_s']:.1f}",
        f"  LogisticRegression       {race['sklearn']['total_cpu_s']:7.2f}"
        f"   accuracy {race['sklearn']['accuracy']:.3f}",
    ]
    for name in ("default", "fast"):
        one = race[name]
        reached = one["cpu_s_to_torch_accuracy"]
        lines.append(
            f"  {name:16}  epoch  {one['epoch_cpu_s']:7.2f}   accuracy {one['accuracy'][-1]:.3f} "
            f"after {one['total_cpu_s']:.1f}; {one['epoch_ratio']:.1f} times as fast an epoch; "
            f"{one['share_of_gemm']:.0%} of the product's rate; as right as the loop after "
            f"{'no epoch' if reached is None else f'{reached:.1f}'}"
        )
    for name in ("ridge", "mm"):
        one = race[name]
        lines.append(
            f"  {name:16}         {one['total_cpu_s']:7.2f}   accuracy {one['accuracy'][-1]:.3f}"
        )
    lines += [
        f"  16 heads at {name}: {one['ratio']:.2f} times the cost of one "
        f"({one['cpu_s']['16']:.2f} against {one['cpu_s']['1']:.2f})"
        for name, one in result["sixteen"].items()
    ]
    return "\n".join(lines)


def check_gradient() -> None:
    """Requires loss and gradient of the parameters to be those that autograd finds in f64.

    Raises:
        AssertionError: They are not.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator)
    labels = torch.randint(0, 10, (256,), generator=generator)
    parameters = 0.3 * torch.randn(65, 10, generator=generator)
    exact = parameters.double().requires_grad_()
    logits = inputs.double() @ exact[:-1] + exact[-1]
    want_B = plain_gce(logits, labels)
    (want,) = torch.autograd.grad(want_B.sum(), exact)
    losses = LossGradient(torch.tensor([Q]), 10, dtype=torch.float32, backend="cpu")
    got = torch.empty_like(parameters)
    got_B = losses.add_to(got, inputs, parameters, labels.int(), None, first=True)[:, 0]
    torch.testing.assert_close(got_B, want_B.detach().float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)


def plain_gce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Generalised cross entropy as people write it."""
    p_B = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return (1 - p_B.clamp_min(1e-7) ** Q) / Q


def _race(n_train: int, n_classes: int, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    features_ND, given_N, true_N, test_ND, test_N = make_classes(n_train, 5000, n_classes)
    test = torch.from_numpy(test_ND).float()

    def accuracy(logits: torch.Tensor) -> float:
        return float((logits.argmax(1).numpy() == test_N).mean())

    def of_heads(heads: Heads) -> float:
        return accuracy(heads.logits(test)[:, 0])

    run = lambda **settings: _ours(features_ND, given_N, n_classes, of_heads, **settings)  # noqa: E731
    run(epochs=1, batch_size=4096)
    gemm = [_gemm_gflops(n_train, n_classes)]
    epochs = 2 if quick else 20
    fast = run(epochs=epochs, **FAST)
    gemm.append(_gemm_gflops(n_train, n_classes))
    default = run(epochs=2 if quick else 5)
    gemm.append(_gemm_gflops(n_train, n_classes))
    loop = _torch_loop(features_ND, given_N, n_classes, 1 if quick else 2, test, accuracy)
    rate, flops = statistics.median(gemm), 4 * n_train * DIM * n_classes
    for ours in (fast, default):
        ours["epoch_ratio"] = round(loop["epoch_cpu_s"] / ours["epoch_cpu_s"], 2)
        ours["share_of_gemm"] = round(flops / ours["epoch_cpu_s"] / 1e9 / rate, 3)
        as_right = [
            spent
            for spent, right in zip(ours.pop("spent"), ours["accuracy"], strict=True)
            if right >= max(loop["accuracy"])
        ]
        ours["cpu_s_to_torch_accuracy"] = as_right[0] if as_right else None
    return {
        "samples": n_train,
        "dim": DIM,
        "classes": n_classes,
        "noise": float((given_N != true_N).mean()),
        "gemm_gflops": round(rate, 1),
        "torch": loop,
        "sklearn": _sklearn(features_ND, given_N, 10 if quick else 15, test, test_N),
        "fast": fast,
        "default": default,
        "ridge": run(solver="ridge"),
        "mm": run(solver="mm", epochs=1 if quick else 4),
    }


def _ours(
    features_ND: np.ndarray,
    label_N: np.ndarray,
    n_classes: int,
    accuracy: Callable[[Heads], float],
    **settings: Any,
) -> dict[str, Any]:
    """Trains one head; what the accuracy costs to find out is not counted."""
    config = ProbeConfig(**settings)
    spec = HeadSpec(Q, config.lr, config.weight_decay, config.l2)
    spent: list[float] = []
    right: list[float] = []
    clock = _Clock()

    def on_epoch(heads: Heads, epoch: int) -> None:
        spent.append(clock.spent())
        right.append(accuracy(heads))
        clock.skip()

    train_heads(features_ND, label_N, [spec], config, n_classes=n_classes, on_epoch=on_epoch)
    each = [after - before for before, after in itertools.pairwise(spent)]
    return {
        "settings": settings,
        "total_cpu_s": round(spent[-1], 3),
        "spent": [round(value, 3) for value in spent],
        "epoch_cpu_s": round(statistics.median(each), 4) if each else None,
        "accuracy": right,
    }


class _Clock:
    """CPU seconds since it was made, less those that were skipped."""

    def __init__(self) -> None:
        self._left, self._spent = _cpu_s(), 0.0

    def spent(self) -> float:
        self._spent += _cpu_s() - self._left
        return self._spent

    def skip(self) -> None:
        self._left = _cpu_s()


def _cpu_s() -> float:
    return time.process_time()


def _gemm_gflops(n_rows: int, n_columns: int) -> float:
    """GFLOP per CPU second of both products of an epoch, f32, on pieces as the probe has them."""
    rows = min(n_rows, rows_at_once(n_columns, torch.device("cpu")))
    inputs, weight = torch.randn(rows, DIM), torch.randn(DIM, n_columns)
    logits, gradient = torch.empty(rows, n_columns), torch.empty(DIM, n_columns)
    repeats = max(1, n_rows // rows)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(inputs, weight, out=logits)
            torch.mm(inputs.T, logits, out=gradient)

    products()
    return 4 * rows * repeats * DIM * n_columns / cost(products).cpu_s / 1e9


def _torch_loop(
    features_ND: np.ndarray,
    label_N: np.ndarray,
    n_classes: int,
    epochs: int,
    test: torch.Tensor,
    accuracy: Callable[[torch.Tensor], float],
) -> dict[str, Any]:
    """What one writes without shardsieve: DataLoader, autograd, AdamW."""
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.from_numpy(features_ND).float(), torch.from_numpy(label_N).long())
    loader = DataLoader(data, batch_size=128, shuffle=True)
    model = torch.nn.Linear(DIM, n_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> None:
        for inputs, labels in loader:
            optimiser.zero_grad()
            plain_gce(model(inputs), labels).mean().backward()
            optimiser.step()

    spent, right = [], []
    for _ in range(epochs):
        spent.append(cost(epoch).cpu_s)
        with torch.no_grad():
            right.append(accuracy(model(test)))
    return {
        "epoch_cpu_s": round(statistics.median(spent), 3),
        "total_cpu_s": round(sum(spent), 3),
        "accuracy": right,
    }


def _sklearn(
    features_ND: np.ndarray, label_N: np.ndarray, max_iter: int, test: torch.Tensor, true_N: Any
) -> dict[str, Any]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        spent = cost(lambda: model.fit(features_ND.astype(np.float32), label_N)).cpu_s
    return {
        "total_cpu_s": round(spent, 3),
        "iterations": int(model.n_iter_[0]),
        "accuracy": float((model.predict(test.numpy()) == true_N).mean()),
    }


def _sixteen(n_train: int, n_classes: int) -> dict[str, Any]:
    """CPU seconds of an epoch with 16 heads and with one, in turn."""
    torch.set_num_threads(1)
    features_ND, given_N, *_ = make_classes(n_train, 1, n_classes)
    fold_N = np.arange(n_train) % 4
    grid = itertools.product((0.5, 0.7), (2e-3, 4e-3), (0, 1), (0, 1))
    specs = [HeadSpec(q, lr, seed=seed, fold=fold) for q, lr, seed, fold in grid]
    config = ProbeConfig(epochs=3, batch_size=4096)
    spent: dict[int, list[float]] = {1: [], 16: []}
    for n_heads in (1, 16, 1, 16):
        marks: list[float] = []
        train_heads(
            features_ND,
            given_N,
            specs[:n_heads],
            config,
            n_classes=n_classes,
            fold_N=fold_N,
            on_epoch=lambda heads, epoch, marks=marks: marks.append(_cpu_s()),  # type: ignore[misc]
        )
        spent[n_heads] += [after - before for before, after in itertools.pairwise(marks)]
    medians = {n_heads: statistics.median(several) for n_heads, several in spent.items()}
    return {
        "samples": n_train,
        "classes": n_classes,
        "cpu_s": {str(n_heads): round(value, 4) for n_heads, value in medians.items()},
        "ratio": round(medians[16] / medians[1], 2),
    }
