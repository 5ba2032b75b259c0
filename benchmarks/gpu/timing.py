"""Timing by the GPU's own clock, each call with a cold L2 cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from gpu import device
from timing import Timing, timing_of

BLOCK_MILLISECONDS = 20.0
MOST_CALLS = 50  # in a block, which also flushes the L2 cache so often
ENOUGH_SECONDS = 5.0  # of one implementation: then three calls will do


class Call(NamedTuple):
    """What is timed, and the path that our products take meanwhile."""

    run: Callable[[], object]
    path: str = "auto"


def measure(calls: Sequence[Call], rounds: int, from_idle: bool = False) -> list[Timing | None]:
    """Seconds of a call of each, in alternating blocks; None for what ran out of memory.

    The order rotates from round to round, so that changes of the GPU's clock meet all alike.

    Args:
        calls: each was called before.
        rounds: blocks of each.
        from_idle: whether a call begins on an idle GPU, so that the host's time to start kernels
            counts. Otherwise the host is ahead of the GPU, and only the kernels' time counts.
    """
    times: list[list[float] | None] = [[] for _ in calls]
    counts = [0] * len(calls)
    for turn in range(rounds):
        for i in range(len(calls)):
            which = (turn + i) % len(calls)
            known = times[which]
            if known is None or (len(known) >= 3 and sum(known) > ENOUGH_SECONDS):
                continue
            try:
                if not counts[which]:
                    (first,) = _time_block(calls[which], 1, from_idle)
                    block = math.ceil(BLOCK_MILLISECONDS / (1e3 * first))
                    counts[which] = min(block, MOST_CALLS)
                known += _time_block(calls[which], counts[which], from_idle)
            except torch.OutOfMemoryError:
                times[which] = None
    return [timing_of(seconds) if seconds else None for seconds in times]


def _time_block(call: Call, count: int, from_idle: bool) -> list[float]:
    events = []
    with device.at_path(call.path):
        for _ in range(count):
            device.flush_l2()
            if from_idle:
                device.synchronize()
            start, end = device.event(), device.event()
            start.record()
            call.run()
            end.record()
            events.append((start, end))
    device.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in events]
