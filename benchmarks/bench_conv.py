"""Packed 3x3 convolutions against their limit, the register peak, and against torch in float32."""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import RESULTS, Implementation, measure, register_peak, result, write_results
from torch import Tensor

from bnn_ext import _C, ops, reference

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels in and out; height and width
HEADER = f"{'shape':<14}{'implementation':<30}{'output':<9}{'ms':>9}{'spread':>8}"
HEADER += f"{'GMAC/s':>9}{'of peak':>9}{'x torch':>9}"


class Problem(NamedTuple):
    """A convolution with padding 1 of random signs: as floats, NCHW, and as packed bits, NHWC."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [C, C, 3, 3]
    packed_x: Tensor  # [N, H, W, words]
    packed_weight: Tensor  # [C, 3, 3, words]
    macs: int  # without those of the padding


def make_problem(batch: int, channels: int, size: int) -> Problem:
    x = reference.sign(torch.randn(batch, channels, size, size))
    weight = reference.sign(torch.randn(channels, channels, 3, 3))
    packed_x = ops.pack(x.permute(0, 2, 3, 1))
    packed_weight = ops.pack(weight.permute(0, 2, 3, 1))
    taps = (3 * size - 2) ** 2  # of all windows together: 3 per row and column, 2 at the ends
    macs = batch * taps * channels * channels
    problem = Problem(x, weight, packed_x, packed_weight, macs)

    sums = ops.conv2d(packed_x, packed_weight, channels, padding=1)
    expected = F.conv2d(x, weight, padding=1).permute(0, 2, 3, 1)
    assert torch.equal(sums.float(), expected), "bnn_ext and torch disagree"
    return problem


def bnn_ext_implementations(problem: Problem, levels: Sequence[str]) -> Iterator[Implementation]:
    x, weight, channels = problem.packed_x, problem.packed_weight, len(problem.weight)
    fixed = {"padding": 1, "tiles": ops.tile_weight(weight)}
    threshold = torch.zeros(channels, dtype=torch.int32)
    scale, bias = torch.rand(channels), torch.rand(channels)
    outputs = {
        "bits": lambda: ops.conv2d_bits(x, weight, channels, threshold=threshold, **fixed),
        "int32": lambda: ops.conv2d(x, weight, channels, **fixed),
        "float32": lambda: ops.conv2d_float(x, weight, channels, scale=scale, bias=bias, **fixed),
    }
    for level in levels:
        for output_dtype, run in outputs.items():
            yield Implementation("bnn_ext", output_dtype, run, problem.macs, level)


def torch_implementations(problem: Problem, levels: Sequence[str]) -> Iterator[Implementation]:
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        x, weight = (t.to(memory_format=layout) for t in (problem.x, problem.weight))
        run = functools.partial(F.conv2d, x, weight, padding=1)
        yield Implementation(f"torch float32 {name}", "float32", run, problem.macs)


# By the module that each needs.
IMPLEMENTATIONS = {"bnn_ext": bnn_ext_implementations, "torch": torch_implementations}


def bench(
    problem: Problem, names: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Times the named implementations and the register peaks together."""
    peaks = [register_peak(level) for level in options.levels]
    others = [i for name in names for i in IMPLEMENTATIONS[name](problem, options.levels)]
    timings = measure([*peaks, *others], options.rounds)
    # A limit is not an average: the peak is that of the fastest block. Threads multiply it.
    fastest = [timing.fastest for timing in timings[: len(peaks)]]
    limits = {p.level: p.macs / seconds for p, seconds in zip(peaks, fastest, strict=True)}

    rows = []
    shape = "x".join(str(size) for size in problem.x.shape)
    for implementation, timing in zip([*peaks, *others], timings, strict=True):
        threads = 1 if implementation in peaks else options.threads
        peak = limits[implementation.level] * threads if implementation.level else None
        rows.append(result("conv2d_3x3", shape, implementation, timing, peak, threads))
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    torch_ms = min(row["median_ms"] for row in rows if row["impl"].startswith("torch"))
    for row in rows:
        line = f"{row['shape']:<14}{row['impl']:<30}{row['output_dtype'] or '':<9}"
        ms = row["median_ms"]
        line += f"{ms:>9.4f}" if row["output_dtype"] else f"{'':>9}"
        line += f"{row['spread']:>8.0%}{row['gmacs']:>9.0f}"
        fraction = row["fraction_of_peak"]
        line += f"{fraction:>9.0%}" if fraction else f"{'':>9}"
        line += f"{torch_ms / ms:>9.1f}" if row["output_dtype"] else ""
        print(line)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1, help="images in a call (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument(
        "--levels",
        nargs="+",
        choices=_C.cpu_capabilities(),
        default=[_C.cpu_capability()],
        help="CPU levels to time (default: the one in use)",
    )
    parser.add_argument("--rounds", type=int, default=50, help="blocks of each (default 50)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    names = []
    for name in IMPLEMENTATIONS:
        if importlib.util.find_spec(name):
            names.append(name)
        else:
            print(f"{name} is not installed and left out")

    print(HEADER)
    rows = []
    with torch.inference_mode():
        for channels, size in SHAPES:
            rows += bench(make_problem(options.batch, channels, size), names, options)
            print_rows([row for row in rows if row["shape"] == rows[-1]["shape"]])
    what = f"conv2d_3x3_batch{options.batch}_threads{options.threads}"
    print(f"written to {write_results(what, rows, options.results)}")


if __name__ == "__main__":
    main()
