"""What only a GPU answers; a test without one puts others in the places of these functions."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"
FLUSH_BYTES = 2**30  # many times an L2 cache: 0.3 ms on an H200, enough to start any kernel


def name() -> str:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark runs on a GPU, and torch sees none")
    return torch.cuda.get_device_name()


def event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def synchronize() -> None:
    torch.cuda.synchronize()


def release() -> None:
    """Gives back the memory that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def flush_l2() -> None:
    """Fills the L2 cache with what nobody needs, and keeps the GPU busy until the host is ahead.

    By reading: lines that were written would go back to memory during the next call.
    """
    _unneeded().amax()


@functools.cache
def _unneeded() -> Tensor:
    return torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device=DEVICE)


@contextmanager
def at_path(path: str) -> Iterator[None]:
    """Our products run on this path, or fail where it cannot run them."""
    from bnn_ext import _C_cuda

    _C_cuda.set_path(path)
    try:
        yield
    finally:
        _C_cuda.set_path("auto")


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph, which gives its result in the same memory each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever libraries do once is not captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
