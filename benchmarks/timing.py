"""What every benchmark needs: fair timing of several implementations, and its results as a file."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bnn_ext
from bnn_ext import _C

RESULTS = Path(__file__).parent / "results"
BLOCK_SECONDS = 2e-3  # long against the clock's resolution, short against changes of the load


class Implementation(NamedTuple):
    """One thing to time."""

    name: str
    output_dtype: str | None
    run: Callable[[], object]
    macs: int  # multiply-accumulates of one call
    level: str | None = None  # the CPU level to run it at, where that matters


class Timing(NamedTuple):
    """Seconds a call in each block: median, interquartile range over median, minimum."""

    median: float
    spread: float
    fastest: float


def measure(implementations: Sequence[Implementation], rounds: int) -> list[Timing]:
    """Times all of them in alternating blocks of a few warm calls.

    Every round has one block of each, so that changes of clock and load meet all alike; the order
    rotates, so that none always follows the same other one. Single calls instead of blocks would
    measure how well each recovers from the caches that the others left.
    """
    before = _C.cpu_capability()
    calls = [_calls_per_block(implementation) for implementation in implementations]
    blocks: list[list[float]] = [[] for _ in implementations]
    for turn in range(rounds):
        for i in range(len(implementations)):
            which = (turn + i) % len(implementations)
            blocks[which].append(_time_block(implementations[which], calls[which]))
    _C.set_cpu_capability(before)
    return [_timing(seconds) for seconds in blocks]


def _time_block(implementation: Implementation, calls: int) -> float:
    if implementation.level:
        _C.set_cpu_capability(implementation.level)
    implementation.run()  # warms up
    start = time.perf_counter()
    for _ in range(calls):
        implementation.run()
    return (time.perf_counter() - start) / calls


def _calls_per_block(implementation: Implementation) -> int:
    seconds = min(_time_block(implementation, 1) for _ in range(3))
    return math.ceil(BLOCK_SECONDS / seconds)


def _timing(seconds: list[float]) -> Timing:
    median = statistics.median(seconds)
    first, _, third = statistics.quantiles(seconds, n=4)
    return Timing(median, (third - first) / median, min(seconds))


def register_peak(level: str) -> Implementation:
    """A CPU level's speed limit: the inner step of its kernels on registers only, on one thread."""
    iterations = 20_000
    macs = iterations * _macs_per_iteration(level)
    return Implementation("register peak", None, lambda: _C.register_peak(iterations), macs, level)


def _macs_per_iteration(level: str) -> int:
    before = _C.cpu_capability()
    _C.set_cpu_capability(level)
    macs = _C.register_peak(1)
    _C.set_cpu_capability(before)
    return macs


def result(
    what: str,
    shape: str,
    implementation: Implementation,
    timing: Timing,
    peak: float | None,
    threads: int,
) -> dict[str, Any]:
    """One row of results; `peak` is the limit in multiply-accumulates a second, if there is one."""
    rate = implementation.macs / timing.median
    level = f" {implementation.level}" if implementation.level else ""
    return {
        "device": cpu_name(),
        "what": what,
        "shape": shape,
        "impl": implementation.name + level,
        "output_dtype": implementation.output_dtype,
        "threads": threads,
        "median_ms": round(1e3 * timing.median, 6),
        "spread": round(timing.spread, 4),
        "gmacs": round(rate / 1e9, 2),
        "fraction_of_peak": round(rate / peak, 4) if peak else None,
    }


# --- the machine, the software, the file ----------------------------------------------------------


def cpu_name() -> str:
    """The model name, with family and model numbers as virtual machines often hide the rest."""
    try:
        processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        processor = ""
    pairs = (line.partition(":") for line in processor.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


def cpu_folder() -> str:
    """The CPU's name and best level as the name of a folder."""
    name = re.sub(r"\((R|TM)\)|CPU|@ \S+", "", cpu_name())
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "-".join([*words, _C.cpu_capabilities()[-1]])


def _commit() -> str | None:
    """The checkout's commit, marked if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_results(what: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Writes `<folder>/<cpu>/<what>.json`, whole or not at all, and returns its path."""
    document = {
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu_level": _C.cpu_capabilities()[-1],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "bnn_ext": bnn_ext.__version__,
        },
        "rows": rows,
    }
    path = folder / cpu_folder() / f"{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)
    return path
