"""Fair timing of several implementations in one process, and the machine's own limits."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from bnn_ext import _C

BLOCK_SECONDS = 2e-3  # long against the clock's resolution, short against changes of the load

# Bytes that lie well inside of each memory and well outside of the one before, on every x86 CPU of
# the last ten years; and how often one call reads them.
MEMORIES = {"L1": (16 * 2**10, 256), "L2": (128 * 2**10, 64), "DRAM": (512 * 2**20, 1)}


class Implementation(NamedTuple):
    """One thing to time."""

    name: str
    output_dtype: str | None
    run: Callable[[], object]
    macs: int | None = None  # multiply-accumulates of one call
    bytes: int | None = None  # what one call reads and writes if it reads its operands once
    level: str | None = None  # the CPU level to run it at, where that matters
    limit: Implementation | None = None  # what its rate is a fraction of
    threads: int | None = None  # where they are not those of the run
    own_clock: Callable[[int], float] | None = None  # seconds a call, in a block of so many calls

    @property
    def work(self) -> int:
        """What a rate counts: multiply-accumulates, or bytes where there are none."""
        work = self.bytes if self.macs is None else self.macs
        assert work is not None, f"{self.name} has neither macs nor bytes"
        return work


class Timing(NamedTuple):
    """Seconds a call in each block: median, interquartile range over median, minimum."""

    median: float
    spread: float
    fastest: float


# --- timing ---------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(implementations: Sequence[Implementation], rounds: int) -> list[Timing]:
    """Times all of them in alternating blocks of a few warm calls.

    Every round has one block of each, so that changes of clock and load meet all alike; the order
    rotates, so that none always follows the same other one. Single calls instead of blocks would
    measure how well each recovers from the caches that the others left.
    """
    calls = [_calls_per_block(implementation) for implementation in implementations]
    blocks: list[list[float]] = [[] for _ in implementations]
    for turn in range(rounds):
        for i in range(len(implementations)):
            which = (turn + i) % len(implementations)
            blocks[which].append(_time_block(implementations[which], calls[which]))
    return [timing_of(seconds) for seconds in blocks]


def _time_block(implementation: Implementation, calls: int) -> float:
    with _at_level(implementation.level):
        if implementation.own_clock:
            return implementation.own_clock(calls)
        implementation.run()  # warms up
        start = time.perf_counter()
        for _ in range(calls):
            implementation.run()
        return (time.perf_counter() - start) / calls


@contextmanager
def _at_level(level: str | None) -> Iterator[None]:
    before = _C.cpu_capability()
    _C.set_cpu_capability(level or before)
    try:
        yield
    finally:
        _C.set_cpu_capability(before)


def _calls_per_block(implementation: Implementation) -> int:
    seconds = min(_time_block(implementation, 1) for _ in range(3))
    return math.ceil(BLOCK_SECONDS / seconds)


def timing_of(seconds: Sequence[float]) -> Timing:
    median = statistics.median(seconds)
    first, _, third = statistics.quantiles(seconds, n=4)
    return Timing(median, (third - first) / median, min(seconds))


# --- limits ---------------------------------------------------------------------------------------


@functools.cache
def register_peak(level: str) -> Implementation:
    """A CPU level's speed limit: the inner step of its kernels on registers only, on one thread."""
    run = functools.partial(_C.register_peak, 20_000)
    with _at_level(level):
        macs = run()
    return Implementation("register peak", None, run, macs, level=level, threads=1)


def at_levels(
    levels: Sequence[str],
    run: Callable[[], object],
    output_dtype: str,
    macs: int,
    bytes: int,
) -> list[Implementation]:
    """The packed operators at each CPU level, against the register peak of that level."""
    return [
        Implementation("bnn_ext", output_dtype, run, macs, bytes, level, register_peak(level))
        for level in levels
    ]


def read_bandwidths(rounds: int = 5) -> dict[str, float]:
    """10^9 bytes a second that one thread reads from each memory, by torch's maximum of int32.

    A maximum has no long chain of dependent steps, and a row that is repeated by a stride of 0 is
    read again without a new call. From L1 the reduction itself may bind before the loads do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reads = []
    for memory, (size, repeats) in MEMORIES.items():
        rows = torch.zeros(size // 4, dtype=torch.int32).expand(repeats, -1)
        run = functools.partial(torch.amax, rows, 1)
        reads.append(Implementation(memory, None, run, bytes=size * repeats))
    timings = measure(reads, rounds)
    torch.set_num_threads(threads)
    return {
        read.name: round(read.work / timing.fastest / 1e9, 2)
        for read, timing in zip(reads, timings, strict=True)
    }
