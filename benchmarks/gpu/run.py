"""A benchmark's run on a GPU: its options, its table, and its file, written as results come."""

from __future__ import annotations

import argparse
import functools
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import provenance
import torch
from gpu import device
from gpu.timing import Call, measure
from run import RESULTS, add_device
from timing import Timing

_REASON_CHARACTERS = 200


class Candidate(NamedTuple):
    """An implementation before it is known whether it can run.

    Attributes:
        prepare: makes the operands, checks the result of a call and returns the call.
        bytes: what a call reads and writes if it reads its operands once.
        path: which our products take.
    """

    name: str
    output_dtype: str
    prepare: Callable[[], Callable[[], object]]
    bytes: int | None = None
    path: str = "auto"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks on a GPU share."""
    options = argparse.ArgumentParser(description=description)
    add_device(options)
    options.add_argument("--rounds", type=int, default=10, help="blocks of each (10)")
    options.add_argument(
        "--seconds", type=float, default=420, help="then no further problem begins (420)"
    )
    options.add_argument("--output", type=Path, help="file (results/<gpu>/<benchmark>.json)")
    return options


class Run:
    """What a benchmark compares; its file is complete for every problem that is done.

    Args:
        name: of the benchmark.
        options: of `parser`.
        from_idle: as for `measure`.
    """

    def __init__(self, name: str, options: argparse.Namespace, from_idle: bool = False) -> None:
        self.gpu = device.name()
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms and takes the fastest
        folder = "-".join(re.findall(r"[a-z0-9]+", self.gpu.lower().replace("nvidia", "")))
        self.path = options.output or RESULTS / folder / f"{name}.json"
        self.options = options
        self.from_idle = from_idle
        self.end = time.monotonic() + options.seconds
        self.lists: dict[str, list[dict[str, Any]]] = {
            key: [] for key in ("rows", "missing", "wrong", "not_reached")
        }
        self.document = {**provenance.gpu_header(), "complete": False, **self.lists}
        header = f"{'problem':<45}{'implementation':<30}{'output':<10}{'ms':>10}{'spread':>8}"
        print(f"{header}{'TOP/s':>10}{'GB/s':>9}{'bnn_ext is':>14}")

    def has_time(self, what: str, shape: str) -> bool:
        """Whether this problem may begin; notes it if not."""
        if time.monotonic() < self.end:
            return True
        self.lists["not_reached"].append({"what": what, "shape": shape})
        return False

    @contextmanager
    def problem(
        self, what: str, shape: str
    ) -> Iterator[Callable[[int | None, Sequence[Candidate]], None]]:
        """Gives `compare` for a problem. What fails is noted, and the next problem can begin.

        Args:
            what, shape: the operator and its input; together the name of the problem.
        """
        try:
            yield functools.partial(self._compare, {"what": what, "shape": shape})
        except Exception as error:
            traceback.print_exc()
            self.lists["wrong"].append({"what": what, "shape": shape, "reason": _reason(error)})
        finally:
            self._write()
        device.release()
        device.synchronize()  # raises again what leaves the GPU unusable: that ends the run

    def _compare(
        self, problem: dict[str, str], macs: int | None, candidates: Sequence[Candidate]
    ) -> None:
        """Times all that can run together.

        Args:
            problem: its name.
            macs: multiply-accumulates of a call, None where memory bounds it.
            candidates: the first is ours and must run; the table compares all others with it.
        """
        timings = self._measure(problem, candidates)
        first = timings.get(candidates[0])
        if first is None:
            self._note("wrong", problem, candidates[0], "has to run, and did not")
        for candidate, timing in timings.items():
            row = _row(self.gpu, problem, candidate, timing, macs)
            self.lists["rows"].append(row)
            ratio = f"{timing.median / first.median:>7.2f}x as fast" if first else ""
            print(f"{_line(row)}{ratio}")

    def finish(self) -> None:
        """Marks the file as complete; fails if something was wrong."""
        self.document["complete"] = not self.lists["not_reached"]
        self._write()
        for problem in self.lists["not_reached"]:
            print(f"not reached: {problem['what']} {problem['shape']}")
        if self.lists["wrong"]:
            raise SystemExit(f"{len(self.lists['wrong'])} wrong results or failures")

    def _measure(
        self, problem: dict[str, str], candidates: Sequence[Candidate]
    ) -> dict[Candidate, Timing]:
        """Of those that ran; the others are noted."""
        torch._dynamo.reset()  # it compiles a function for a few shapes only, then no more
        calls: dict[Candidate, Call] = {}
        for candidate in candidates:
            if run := self._prepare(problem, candidate):
                calls[candidate] = Call(run, candidate.path)
        timings = measure([*calls.values()], self.options.rounds, self.from_idle)
        for candidate, timing in zip(calls, timings, strict=True):
            if timing is None:
                self._note("missing", problem, candidate, "out of memory")
        return {c: t for c, t in zip(calls, timings, strict=True) if t is not None}

    def _prepare(
        self, problem: dict[str, str], candidate: Candidate
    ) -> Callable[[], object] | None:
        try:
            with device.at_path(candidate.path):
                return candidate.prepare()
        except AssertionError as error:
            self._note("wrong", problem, candidate, str(error))
        except (ImportError, RuntimeError, ValueError) as error:
            self._note("missing", problem, candidate, _reason(error))
        device.release()
        device.synchronize()  # see `problem`
        return None

    def _note(self, key: str, problem: dict[str, str], candidate: Candidate, reason: str) -> None:
        names = {"impl": candidate.name, "output_dtype": candidate.output_dtype}
        self.lists[key].append({**problem, **names, "reason": reason})
        name = f"{problem['what']} {problem['shape']}"
        print(f"{name:<45}{candidate.name:<30}{candidate.output_dtype:<10}{key}: {reason}")

    def _write(self) -> None:
        provenance.write(self.path, self.document)


def _reason(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:_REASON_CHARACTERS]


def _row(
    gpu: str, problem: dict[str, str], candidate: Candidate, timing: Timing, macs: int | None
) -> dict[str, Any]:
    return {
        "device": gpu,
        **problem,
        "impl": candidate.name,
        "output_dtype": candidate.output_dtype,
        "median_ms": round(1e3 * timing.median, 6),
        "spread": round(timing.spread, 4),
        "tera_ops_per_s": round(2 * macs / timing.median / 1e12, 4) if macs else None,
        "bytes": candidate.bytes,
    }


def _line(row: dict[str, Any]) -> str:
    name = f"{row['what']} {row['shape']}"
    line = f"{name:<45}{row['impl']:<30}{row['output_dtype']:<10}"
    line += f"{row['median_ms']:>10.4f}{row['spread']:>8.0%}"
    rate, bytes = row["tera_ops_per_s"], row["bytes"]
    line += f"{'':>10}" if rate is None else f"{rate:>10.1f}"
    return line + (f"{'':>9}" if bytes is None else f"{bytes / row['median_ms'] / 1e6:>9.0f}")
