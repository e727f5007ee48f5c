"""softmax_stats beside the same six columns from torch; on a GPU, beside a plain copy of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.timing import in_new_process, interleaved
from shardsieve_kernels.softmax_stats import softmax_stats
from shardsieve_kernels.testing import TOLERANCE, assert_close

Q = 0.7
FIELDS = ("loss_N", "gce_N", "margin_N", "pred_N", "p_label_N", "entropy_N")


def measure(*, quick: bool) -> dict[str, Any]:
    """Times both on one thread, at 14 and at 1,000 classes."""
    n_samples = 20_000 if quick else 200_000
    repeats = 3 if quick else 7
    one_thread = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    shapes = [(n_samples, 14), (n_samples // 4, 1000)]
    return {
        "repeats": repeats,
        "cases": [
            in_new_process(_measure_one, *shape, repeats, environment=one_thread)[0]
            for shape in shapes
        ],
    }


def describe(result: dict[str, Any]) -> str:
    """Says how much sooner softmax_stats is done."""
    return "\n".join(
        f"{case['samples']:,} x {case['classes']:,}: {case['ratio']:.1f} times as fast as torch "
        f"({case['costs']['softmax_stats']['cpu_s'][1]:.3f} CPU seconds)"
        for case in result["cases"]
    )


def _measure_one(n_samples: int, n_classes: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    logits_NK, labels_N = make_logits(n_samples, n_classes)
    few = slice(0, 2000)
    check(logits_NK[few], labels_N[few], "cpu")
    got = softmax_stats(logits_NK[few], labels_N[few], q=Q, backend="cpu")
    for field, values in zip(FIELDS, with_torch(logits_NK[few], labels_N[few]), strict=True):
        assert_close(field, values.astype(getattr(got, field).dtype), getattr(got, field),
                     rtol=1e-4, atol=1e-4)  # fmt: skip
    costs = interleaved(
        {
            "softmax_stats": lambda: softmax_stats(logits_NK, labels_N, q=Q, backend="cpu"),
            "torch": lambda: with_torch(logits_NK, labels_N),
        },
        repeats,
    )
    ratio = costs["torch"]["cpu_s"][1] / costs["softmax_stats"]["cpu_s"][1]
    return {"samples": n_samples, "classes": n_classes, "costs": costs, "ratio": round(ratio, 2)}


def make_logits(n_samples: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, K) f32 logits, most of which favour the label, and (N,) i32 labels."""
    rng = np.random.default_rng(0)
    logits_NK = rng.standard_normal((n_samples, n_classes), np.float32) * 3
    labels_N = rng.integers(0, n_classes, n_samples, dtype=np.int32)
    agree_N = np.flatnonzero(rng.random(n_samples) < 0.7)
    logits_NK[agree_N, labels_N[agree_N]] += 9
    return logits_NK, labels_N


def check(logits_NK: np.ndarray, labels_N: np.ndarray, backend: Any) -> None:
    """Requires a backend to agree with the reference.

    Raises:
        AssertionError: It does not.
    """
    want = softmax_stats(logits_NK, labels_N, q=Q, backend="reference")
    got = softmax_stats(logits_NK, labels_N, q=Q, backend=backend)
    assert np.array_equal(got.pred_N, want.pred_N)
    for field in FIELDS:
        tolerance = TOLERANCE["softmax_stats"][backend]
        assert_close(field, getattr(got, field), getattr(want, field), **tolerance)


def with_torch(logits_NK: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """The six columns, in the order of FIELDS, as one would write them with torch."""
    labels = torch.from_numpy(labels_N).long()[:, None]
    log_p = torch.log_softmax(torch.from_numpy(logits_NK), dim=1)
    p = log_p.exp()
    loss = -log_p.gather(1, labels)[:, 0]
    p_label = p.gather(1, labels)[:, 0]
    top = p.topk(2, dim=1)
    label_is_top = top.indices[:, 0] == labels[:, 0]
    margin = p_label - torch.where(label_is_top, top.values[:, 1], top.values[:, 0])
    entropy = -(p * log_p).sum(dim=1)
    gce = (1 - p_label**Q) / Q
    columns = (loss, gce, margin, top.indices[:, 0], p_label, entropy)
    return tuple(column.numpy() for column in columns)


def measure_gpu(*, quick: bool) -> dict[str, Any]:
    """Bytes per second of softmax_stats on resident logits, beside a copy within the memory."""
    import cupy as cp

    from bench.gpu import beside_copy

    few_NK, few_N = make_logits(4000, 1000)
    check(few_NK, few_N, "gpu")
    check(few_NK.astype(np.float16), few_N, "gpu")
    cases = []
    n_samples = 100_000 if quick else 2_400_000
    for n_classes in (14, 1000):
        logits_NK = cp.random.standard_normal((n_samples, n_classes), cp.float32)
        logits_NK = logits_NK.astype(cp.float16)
        labels_N = cp.random.randint(0, n_classes, n_samples).astype(cp.int32)
        copy = cp.empty_like(logits_NK)
        call = lambda a=logits_NK, b=labels_N: softmax_stats(a, b, q=Q, backend="gpu")  # noqa: E731
        copying = lambda a=logits_NK, b=copy: cp.copyto(b, a)  # noqa: E731
        n_bytes = logits_NK.nbytes + labels_N.nbytes + 24 * n_samples
        measured = beside_copy(call, n_bytes, copying, 2 * logits_NK.nbytes)
        cases.append({"samples": n_samples, "classes": n_classes, **measured})
        del logits_NK, copy
    return {"repeats": 20, "cases": cases}


def goals_gpu(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    wide = result["cases"][-1]
    return {
        f"at least 70 % of the copy's bytes/s at {wide['classes']:,} classes "
        f"({wide['share_of_copy']:.0%})": wide["share_of_copy"] >= 0.7,
        f"less than 0.5 GB beside the logits ({wide['extra_bytes'] / 1e9:.2f})": wide["extra_bytes"]
        < 0.5e9,
    }
