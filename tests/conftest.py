"""What all tests share: fixed seeds, the hypothesis profile, the CPU levels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from bnn_ext import _C

# Most tests are so small that threads cost more than they give, and far more on a busy machine;
# those about threads ask for them.
torch.set_num_threads(1)

# Derandomized, so that a run repeats; the `level` fixture holds for all examples of a test alike.
settings.register_profile(
    "bnn_ext",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("bnn_ext")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=_C.cpu_capabilities())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once at every CPU level of this machine."""
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny layers, where waking a second thread takes longer than the work."""
    yield from _threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    yield from _threads(2)


def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
