"""The linear probe beside scikit-learn's LogisticRegression and a plain PyTorch loop.

In CPU seconds. Threads that wait for each other count, and the small steps of the PyTorch loop make
them wait often: on a machine with other work its epoch costs many times more with two threads than
with one. So an epoch is measured as it comes, with threads that sleep while they wait, and with one
thread; all else with one. The ratio that says how much work is saved is that of one thread.
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
from bench.probe_rivals import plain_gce, sklearn, torch_epoch, torch_loop
from bench.timing import Cost, cost, in_new_process
from shardsieve.config import ProbeConfig
from shardsieve.models.probe import Heads, HeadSpec, train_heads
from shardsieve.models.probe.gradient import LossGradient, rows_at_once

__all__ = ["describe", "goals", "goals_gpu", "measure", "measure_gpu"]

# The setting for haste: large batches, longer steps. The default is ProbeConfig's.
FAST = {"batch_size": 8192, "lr": 4e-3}
GOAL_EPOCH, GOAL_GEMM, GOAL_SIXTEEN = 8, 0.5, 3
ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
THREADS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}, "one": ONE_THREAD}


def measure(*, quick: bool) -> dict[str, Any]:
    """Times an epoch beside PyTorch's, the way to the same accuracy, and 16 heads beside one."""
    n_train, n_classes = (8192, 20) if quick else (100_000, 100)
    check_gradient()
    shapes = {"14 classes": (n_train, 14), f"{n_classes} classes": (n_train // 4, n_classes)}
    return {
        "repeats": 3,
        "epochs": {
            name: in_new_process(_epochs, n_train, n_classes, quick, environment=threads)[0]
            for name, threads in THREADS.items()
        },
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
        f"An epoch, threads {name} ({one['threads']}): PyTorch loop {one['torch_cpu_s']:.2f} CPU s "
        f"({one['torch_wall_s']:.2f} s), fast {one['fast_cpu_s']:.2f} "
        f"({one['fast_wall_s']:.2f} s): "
        f"{one['ratio']:.1f} times fewer CPU seconds"
        for name, one in result["epochs"].items()
    ]
    lines += [
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
        f"({one['cpu_s']['16']:.2f} against {one['cpu_s']['1']:.2f}); the products alone "
        f"{one['products_ratio']:.2f} times"
        for name, one in result["sixteen"].items()
    ]
    lines += [f"  {'met' if met else 'MISSED'}: {goal}" for goal, met in goals(result).items()]
    return "\n".join(lines)


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    epochs, race = result["epochs"], result["race"]
    ratios = ", ".join(f"{name} {one['ratio']}" for name, one in epochs.items())
    narrow = result["sixteen"]["14 classes"]["ratio"]
    goal = f"an epoch for {GOAL_EPOCH} times fewer CPU seconds than the PyTorch loop's"
    return {
        f"{goal}, threads as they come ({ratios})": epochs["default"]["ratio"] >= GOAL_EPOCH,
        f"{GOAL_GEMM:.0%} of the products' rate ({race['fast']['share_of_gemm']:.0%})": race[
            "fast"
        ]["share_of_gemm"]
        >= GOAL_GEMM,
        f"16 heads of 14 classes for less than {GOAL_SIXTEEN} times one ({narrow})": narrow
        < GOAL_SIXTEEN,
    }


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


def _epochs(n_train: int, n_classes: int, quick: bool) -> dict[str, Any]:
    """An epoch of ours and of the PyTorch loop in turn, with the threads that torch has."""
    features_ND, given_N, *_ = make_classes(n_train, 1, n_classes)
    loop = torch_epoch(features_ND, given_N, n_classes)[0]
    costs: dict[str, list[Cost]] = {"torch": [], "fast": []}
    for _ in range(1 if quick else 2):
        costs["torch"].append(cost(loop))
        costs["fast"] += _fast_epochs(features_ND, given_N, n_classes)
    median = {
        f"{name}_{unit}": statistics.median(getattr(one, unit) for one in several)
        for name, several in costs.items()
        for unit in ("cpu_s", "wall_s")
    }
    return {
        "threads": torch.get_num_threads(),
        "ratio": round(median["torch_cpu_s"] / median["fast_cpu_s"], 2),
        **{name: round(value, 4) for name, value in median.items()},
    }


def _fast_epochs(features_ND: np.ndarray, label_N: np.ndarray, n_classes: int) -> list[Cost]:
    marks: list[Cost] = []
    train_heads(
        features_ND,
        label_N,
        [HeadSpec(Q, FAST["lr"])],
        ProbeConfig(epochs=4, **FAST),
        n_classes=n_classes,
        on_epoch=lambda heads, epoch: marks.append(Cost(time.perf_counter(), _cpu_s())),
    )
    return [
        Cost(after.wall_s - before.wall_s, after.cpu_s - before.cpu_s)
        for before, after in itertools.pairwise(marks)
    ]


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
    loop = torch_loop(features_ND, given_N, n_classes, 1 if quick else 2, test, accuracy)
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
        "sklearn": sklearn(features_ND, given_N, 10 if quick else 15, test, test_N),
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
        "products_ratio": round(
            16 * _gemm_gflops(n_train, n_classes) / _gemm_gflops(n_train, 16 * n_classes), 2
        ),
    }
