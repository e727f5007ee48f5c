"""Milliseconds and memory of calls on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def median_ms(call: Callable[[], object], repeats: int = 20, warmups: int = 3) -> float:
    """Times a call between two events on the device.

    What the host does meanwhile counts only if the device waits for it.

    Returns:
        The median in milliseconds.
    """
    from cupyx.profiler import benchmark

    times = benchmark(call, n_repeat=repeats, n_warmup=warmups).gpu_times
    return float(np.median(times)) * 1e3


def beside_copy(
    call: Callable[[], object], n_bytes: int, copying: Callable[[], object], copied_bytes: int
) -> dict[str, Any]:
    """Times a call and a plain copy within the memory.

    Args:
        call: What is measured.
        n_bytes: What it has to read and write.
        copying: The copy.
        copied_bytes: What that reads and writes.

    Returns:
        Milliseconds, both rates, their ratio, and the bytes that the call takes beside its inputs.
    """
    ms, copy_ms = median_ms(call), median_ms(copying)
    rate, copy_rate = n_bytes / ms, copied_bytes / copy_ms
    return {
        "ms": round(ms, 4),
        "gb_per_s": round(rate / 1e6, 1),
        "copy_gb_per_s": round(copy_rate / 1e6, 1),
        "share_of_copy": round(rate / copy_rate, 3),
        "extra_bytes": resident_bytes(call),
    }


def resident_bytes(call: Callable[[], object]) -> int:
    """Bytes that a call takes on the device at its peak, results included.

    CuPy's pool gives no block back by itself, so what it holds afterwards is what was needed. torch
    counts for itself.
    """
    import cupy as cp
    import torch

    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = pool.total_bytes() + torch.cuda.memory_allocated()
    result = call()
    cp.cuda.get_current_stream().synchronize()
    after = pool.total_bytes() + torch.cuda.max_memory_allocated()
    del result
    return int(after - before)
