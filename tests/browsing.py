"""Waiting for a page. Playwright's own wait needs `eval`, which our pages forbid."""

from __future__ import annotations

import time
from typing import Any


def wait_until(page: Any, expression: str, seconds: float = 30) -> None:
    """Returns when a JavaScript expression is true."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, f"still not true: {expression}"
        page.wait_for_timeout(30)
