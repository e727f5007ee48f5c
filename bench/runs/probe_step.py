"""probe_step beside the same loss and gradient in torch; on a GPU, beside a copy of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.timing import in_new_process, interleaved
from shardsieve_kernels.probe_step import probe_step
from shardsieve_kernels.testing import GRADIENT_TOLERANCE, TOLERANCE, assert_close

Q = 0.7
N_FEATURES = 768


def measure(*, quick: bool) -> dict[str, Any]:
    """Times both on one thread on the batches of a probe, and the two products of such a step."""
    repeats = 3 if quick else 11
    n_samples = 512 if quick else 8192
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("NUMBA", "OMP", "OPENBLAS", "MKL")}
    shapes = [(n_samples, 1, 14), (n_samples, 16, 14), (n_samples, 1, 100), (n_samples, 1, 1000)]
    return {
        "repeats": repeats,
        "cases": [
            in_new_process(_measure_one, *shape, repeats, environment=one_thread)[0]
            for shape in shapes
        ],
    }


def describe(result: dict[str, Any]) -> str:
    """Says how much sooner probe_step is done, and what it costs beside the matrix products."""
    return "\n".join(
        f"{case['samples']:,} x {case['heads']} x {case['classes']:,}: {case['ratio']:.1f} times "
        f"as fast as torch ({case['ns_per_logit']:.2f} ns a logit, "
        f"{case['share_of_products']:.1%} of the products with {N_FEATURES} features)"
        for case in result["cases"]
    )


def _measure_one(n_samples: int, n_heads: int, n_classes: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    logits_BHK, labels_B, q_H = make_batch(n_samples, n_heads, n_classes)
    check(logits_BHK[:300], labels_B[:300], q_H, "cpu")
    few = logits_BHK[:300], labels_B[:300], q_H
    for field, got, want in zip(
        ("loss", "gradient"), with_torch(*few), probe_step(*few, backend="cpu"), strict=True
    ):
        # torch takes 1 from a rounded p and cannot be nearer than f32 is to 1.
        assert_close(field, got, want, rtol=1e-4, atol=1e-6)
    out = np.empty_like(logits_BHK)
    features = rng.standard_normal((n_samples, N_FEATURES), np.float32)
    weights = rng.standard_normal((N_FEATURES, n_heads * n_classes), np.float32)
    flat = logits_BHK.reshape(n_samples, -1)
    costs = interleaved(
        {
            "probe_step": lambda: probe_step(
                logits_BHK, labels_B, q_H, out=out, checked=True, backend="cpu"
            ),
            "torch": lambda: with_torch(logits_BHK, labels_B, q_H),
            "products": lambda: (features @ weights, features.T @ flat),
        },
        repeats,
    )
    cpu_s = {name: cost["cpu_s"][1] for name, cost in costs.items()}
    return {
        "samples": n_samples,
        "heads": n_heads,
        "classes": n_classes,
        "costs": costs,
        "ratio": round(cpu_s["torch"] / cpu_s["probe_step"], 2),
        "ns_per_logit": round(cpu_s["probe_step"] / logits_BHK.size * 1e9, 3),
        "share_of_products": round(cpu_s["probe_step"] / cpu_s["products"], 4),
    }


def make_batch(
    n_samples: int, n_heads: int, n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (B, H, K) f32 logits, most of which favour the label, (B,) i32 labels, (H,) f64 q."""
    rng = np.random.default_rng(0)
    logits_BHK = rng.standard_normal((n_samples, n_heads, n_classes), np.float32) * 3
    labels_B = rng.integers(0, n_classes, n_samples, dtype=np.int32)
    agree_B = np.flatnonzero(rng.random(n_samples) < 0.7)
    logits_BHK[agree_B, :, labels_B[agree_B]] += 9
    return logits_BHK, labels_B, np.full(n_heads, Q)


def check(logits_BHK: Any, labels_B: np.ndarray, q_H: np.ndarray, backend: Any) -> None:
    """Requires a backend to agree with the reference.

    Raises:
        AssertionError: It does not.
    """
    want = probe_step(logits_BHK, labels_B, q_H, backend="reference")
    got = probe_step(logits_BHK, labels_B, q_H, backend=backend)
    dtype = str(logits_BHK.dtype).removeprefix("torch.")
    tolerances = TOLERANCE["probe_step"][backend], GRADIENT_TOLERANCE[dtype]
    for field, tolerance in zip(want._fields, tolerances, strict=True):
        found, right = (
            np.asarray(torch.as_tensor(getattr(step, field)).float()) for step in (got, want)
        )
        assert_close(field, found, right, **tolerance)


def with_torch(
    logits_BHK: np.ndarray, labels_B: np.ndarray, q_H: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient as one would write them with torch, without autograd's further copies."""
    log_p = torch.log_softmax(torch.from_numpy(logits_BHK), dim=2)
    at_label = torch.from_numpy(labels_B).long()[:, None, None].expand(-1, log_p.shape[1], 1)
    log_p_label = log_p.gather(2, at_label)
    q = torch.from_numpy(q_H).float()[:, None]
    loss = -torch.expm1(q * log_p_label) / q
    gradient = log_p.exp_()
    gradient.scatter_add_(2, at_label, torch.full_like(log_p_label, -1.0))
    gradient *= torch.exp(q * log_p_label)
    return loss[:, :, 0].numpy(), gradient.numpy()


def measure_gpu(*, quick: bool) -> dict[str, Any]:
    """Bytes per second of probe_step on resident bf16 logits, beside a copy within the memory."""
    from bench.gpu import beside_copy

    shapes = [(16_384, 1, 1000), (65_536, 16, 14)]
    if quick:
        shapes = [(n_samples // 64, n_heads, n_classes) for n_samples, n_heads, n_classes in shapes]
    cases = []
    for n_samples, n_heads, n_classes in shapes:
        batch = make_batch(n_samples, n_heads, n_classes)
        host = torch.from_numpy(batch[0]).to(torch.bfloat16)
        check(host[:500], batch[1][:500], batch[2], "gpu")
        logits = host.cuda()
        labels, q = torch.from_numpy(batch[1]).cuda(), torch.from_numpy(batch[2]).float().cuda()
        out = torch.empty_like(logits)
        call = lambda a=logits, b=labels, c=q, d=out: probe_step(  # noqa: E731
            a, b, c, out=d, checked=True, backend="gpu"
        )
        copying = lambda a=logits, b=out: b.copy_(a)  # noqa: E731
        n_bytes = 2 * logits.nbytes + labels.nbytes + 4 * n_samples * n_heads
        measured = beside_copy(call, n_bytes, copying, 2 * logits.nbytes)
        shape = {"samples": n_samples, "heads": n_heads, "classes": n_classes}
        cases.append({**shape, **measured})
    return {"repeats": 20, "cases": cases}


def goals_gpu(result: dict[str, Any]) -> dict[str, bool]:
    """Says which goals were met."""
    shares = {
        f"at least 70 % of the copy's bytes/s at {case['samples']:,} x {case['heads']} x "
        f"{case['classes']:,} ({case['share_of_copy']:.0%})": case["share_of_copy"] >= 0.7
        for case in result["cases"]
    }
    most = max(case["extra_bytes"] for case in result["cases"])
    return {**shares, f"less than 0.1 GB beside the batch ({most / 1e9:.3f})": most < 0.1e9}
