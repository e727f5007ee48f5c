"""Milliseconds and memory of calls on a GPU."""

from __future__ import annotations

from collections.abc import Callable

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
