"""The GPU's own limits: copying memory, torch's bf16 and int8 products, the binary tensor cores."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import provenance
import torch

SOURCE = Path(__file__).resolve().parents[1] / "cuda/ceilings.cu"
NVCC_OPTIONS = ["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a"]
RUNS = 30


def row(what: str, milliseconds: Sequence[float], **more: Any) -> dict[str, Any]:
    """One limit: the median of its runs, their interquartile range over it, and what it did."""
    median = statistics.median(milliseconds)
    first, _, third = statistics.quantiles(milliseconds, n=4)
    rates = {}
    if "bytes" in more:  # read and written
        rates["gbytes_per_s"] = round(more["bytes"] / median / 1e6, 1)
    if "macs" in more:  # two operations each
        rates["tera_ops_per_s"] = round(2 * more["macs"] / median / 1e9, 1)
    return {
        "what": what,
        "median_ms": round(median, 6),
        "spread": round((third - first) / median, 4),
        **more,
        **rates,
    }


# --- torch ----------------------------------------------------------------------------------------


def torch_rows(size: int = 8192, copied_bytes: int = 2**32) -> list[dict[str, Any]]:
    """On random values: on zeros a GPU draws less power and runs at higher clocks."""
    source = torch.randint(256, (copied_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rows = [row("copy", _time(lambda: target.copy_(source)), bytes=2 * copied_bytes)]

    shape, macs = f"{size}x{size}x{size}", size**3
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device="cuda")
    rows.append(row("torch bf16", _time(lambda: a @ b.t()), shape=shape, macs=macs))
    x, w = torch.randint(-128, 128, (2, size, size), dtype=torch.int8, device="cuda")
    times = _time(lambda: torch._int_mm(x, w.t()))
    rows.append(row("torch int8 _int_mm", times, shape=shape, macs=macs))
    return rows


def _time(run: Callable[[], object]) -> list[float]:
    """Milliseconds of each run, by the GPU's clock."""
    for _ in range(3):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(events, events[1:], strict=False)]


# --- binary tensor cores --------------------------------------------------------------------------


def binary_rows(multiprocessors: int) -> list[dict[str, Any]]:
    """Compiles ceilings.cu and runs it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/ceilings"
        subprocess.run([nvcc, *NVCC_OPTIONS, SOURCE, "-o", program], check=True)
        output = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [parse(line, multiprocessors) for line in output.splitlines()]


def parse(line: str, multiprocessors: int) -> dict[str, Any]:
    """A line of ceilings.cu, which counts for one multiprocessor."""
    instruction, a, warps, correct, block_macs, cycles, *milliseconds = line.split()
    return row(
        instruction,
        [float(run) for run in milliseconds],
        a_in=a,
        warps=int(warps),
        correct=correct == "1",
        macs=int(block_macs) * multiprocessors,
        macs_per_cycle=round(int(block_macs) / int(cycles)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("the ceilings are those of a GPU, and torch sees none")

    header = provenance.gpu_header()
    rows = torch_rows() + binary_rows(header["device"]["multiprocessors"])
    for limit in rows:
        print(*(f"{key} {value}" for key, value in limit.items() if key != "macs"), sep=", ")
    provenance.write(options.output, {**header, "ceilings": rows})
    if not all(limit.get("correct", True) for limit in rows):
        raise SystemExit("sums of ceilings.cu are wrong: its instructions do something else")


if __name__ == "__main__":
    main()
