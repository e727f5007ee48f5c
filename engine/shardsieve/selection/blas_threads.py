"""How many threads BLAS may use for a product."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from threadpoolctl import threadpool_limits

# Floating-point operations of one product from which more than one thread pays.
_WORTH_SHARING = 3e9


def threads_for(flops: float) -> AbstractContextManager[object]:
    """Limits BLAS to one thread where single products are small.

    Its threads wait for each other by spinning. A product of milliseconds gains little by them, and
    on a machine with other work each may wait for a whole slice of time (measured: ten times the
    CPU seconds).

    Args:
        flops: Of one product.
    """
    if flops < _WORTH_SHARING:
        return threadpool_limits(1, user_api="blas")
    return nullcontext()
