"""The `backend` fixture: a test that takes it runs once on every fast backend."""

from typing import get_args

import pytest

from shardsieve_kernels import Backend, why_unavailable


@pytest.fixture(params=[name for name in get_args(Backend) if name != "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = why_unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param
