"""The part of `bench.runs.probe` that needs a GPU."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.probe_classes import DIM, Q, make_classes
from shardsieve.config import ProbeConfig
from shardsieve.models.probe import HeadSpec, train_heads
from shardsieve.models.probe.batches import Resident
from shardsieve.models.probe.gradient import LossGradient, rows_at_once
from shardsieve.models.probe.minibatch import start_weights, train_minibatch
from shardsieve.models.probe.targets import Targets


def measure_gpu(*, quick: bool) -> dict[str, Any]:
    """Milliseconds an epoch on resident features, beside the two products alone."""
    device = torch.device("cuda")
    shapes = [(2_400_000, 1000, 65_536), (1_000_000, 14, 262_144)]
    if quick:
        shapes = [(100_000, classes, batch // 8) for _, classes, batch in shapes]
    check_gpu()
    return {"repeats": 10, "cases": [_epochs_gpu(*shape, device) for shape in shapes]}


def check_gpu() -> None:
    """Requires training on the GPU, in f16, to end as training on the CPU does.

    Raises:
        AssertionError: It does not.
    """
    features_ND, given_N, _, test_ND, test_N = make_classes(20_000, 2000, 10)
    right = []
    for device, backend in (("cpu", "cpu"), ("cuda", "gpu")):
        heads, _ = train_heads(
            features_ND,
            given_N,
            [HeadSpec()],
            ProbeConfig(epochs=5),
            n_classes=10,
            device=torch.device(device),
            backend=backend,  # type: ignore[arg-type]
        )
        logits = heads.logits(torch.from_numpy(test_ND))[:, 0].cpu()
        right.append(float((logits.argmax(1).numpy() == test_N).mean()))
    assert abs(right[0] - right[1]) < 0.02, f"right on the CPU {right[0]}, on the GPU {right[1]}"


def _epochs_gpu(
    n_rows: int, n_classes: int, batch_size: int, device: torch.device
) -> dict[str, Any]:
    import cupy as cp

    from bench.gpu import median_ms

    inputs = torch.empty(n_rows, DIM, dtype=torch.float16, device=device).normal_()
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = pool.total_bytes() + torch.cuda.memory_allocated()
    batches = Resident(
        inputs,
        torch.arange(n_rows, device=device),
        batch_size=batch_size,
        piece_rows=rows_at_once(n_classes, device),
        seed=0,
    )
    labels_N = np.random.default_rng(0).integers(0, n_classes, n_rows, dtype=np.int32)
    specs = [HeadSpec(Q)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(13)]
    train_minibatch(
        start_weights(specs, DIM, n_classes).to(device),
        batches,
        Targets(labels_N, None, None, specs, order=None, device=device),
        LossGradient(
            torch.tensor([Q], device=device), n_classes, dtype=torch.float16, backend="gpu"
        ),
        specs,
        epochs=len(marks),
        on_epoch=lambda epoch: marks[epoch].record(),
        advance=lambda amount: None,
    )
    torch.cuda.synchronize()
    extra = pool.total_bytes() + torch.cuda.max_memory_allocated() - before
    # The first two epochs load kernels.
    each = [a.elapsed_time(b) for a, b in itertools.pairwise(marks[2:])]
    ms, gemm_ms = statistics.median(each), _products_ms(inputs, n_classes, median_ms)
    return {
        "samples": n_rows,
        "classes": n_classes,
        "batch_size": batch_size,
        "epoch_ms": round(ms, 3),
        "products_ms": round(gemm_ms, 3),
        "share_of_gemm": round(gemm_ms / ms, 3),
        "extra_bytes": int(extra),
    }


def _products_ms(
    inputs: torch.Tensor, n_classes: int, median_ms: Callable[[Callable[[], object]], float]
) -> float:
    """Both products over all rows in bf16, at the rate of one large piece."""
    rows = min(len(inputs), rows_at_once(n_classes, inputs.device))
    piece = inputs[:rows].bfloat16()
    weight = torch.randn(DIM, n_classes, dtype=torch.bfloat16, device=inputs.device)
    logits = piece @ weight
    forward = median_ms(lambda: torch.mm(piece, weight, out=logits))
    backward = median_ms(lambda: piece.T @ logits)
    return (forward + backward) * len(inputs) / rows


def goals_gpu(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    wide, narrow = result["cases"]
    extra = max(case["extra_bytes"] for case in result["cases"])
    return {
        f"an epoch of 2.4M x 1,000 classes in at most 15 ms ({wide['epoch_ms']})": wide["epoch_ms"]
        <= 15,
        f"60 % of the bf16 products' rate ({wide['share_of_gemm']:.0%})": wide["share_of_gemm"]
        >= 0.6,
        f"an epoch of 1M x 14 classes in at most 1.5 ms ({narrow['epoch_ms']})": narrow["epoch_ms"]
        <= 1.5,
        f"less than 0.5 GB beside the features ({extra / 1e9:.2f})": extra < 0.5e9,
    }
