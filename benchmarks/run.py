"""A benchmark's run: its options, its table, its rows, and the file that holds them."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import provenance
import torch
from parts import Part
from peers import Missing, Peers
from timing import Implementation, Timing, measure, read_bandwidths

import bnn_ext
from bnn_ext import _C

RESULTS = Path(__file__).parent / "results"
ONEDNN_ISAS = ("AVX512_CORE", "AVX512_CORE_VNNI")


def add_device(options: argparse.ArgumentParser) -> None:
    """The option of those benchmarks that have a CUDA side."""
    options.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="what to measure; cuda has options of its own: see --device cuda --help (cpu)",
    )


def on_cuda(arguments: Sequence[str] | None) -> bool:
    """Whether the arguments ask for the benchmark's CUDA side."""
    options = argparse.ArgumentParser(add_help=False)
    add_device(options)
    return options.parse_known_args(arguments)[0].device == "cuda"


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share on a CPU."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--threads", type=int, default=1, help="of every implementation (1)")
    options.add_argument(
        "--levels",
        nargs="+",
        choices=["all", *_C.cpu_capabilities()],
        default=[_C.cpu_capability()],
        help="CPU levels to time (the one in use)",
    )
    options.add_argument("--rounds", type=int, default=rounds, help=f"blocks of each ({rounds})")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    options.add_argument(
        "--onednn-isa",
        choices=ONEDNN_ISAS,
        help="limit OpenVINO's kernels, and all of torch's that oneDNN has, to this",
    )
    return options


class Run:
    """What a benchmark compares, printed as it goes, and in the end written as JSON."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Sets the threads, the seed and the limit of oneDNN, and measures the memories."""
        if options.onednn_isa:  # read by each library when it first chooses a kernel
            os.environ["ONEDNN_MAX_CPU_ISA"] = options.onednn_isa
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        chosen = _C.cpu_capabilities() if "all" in options.levels else options.levels
        self.levels = [level for level in reversed(_C.cpu_capabilities()) if level in chosen]
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.missing: list[dict[str, str]] = []
        self.parts: list[dict[str, Any]] = []
        self.bandwidths = read_bandwidths()
        header = f"{'shape':<20}{'implementation':<32}{'output':<10}{'ms':>10}{'spread':>8}"
        print(f"{header}{'GMAC/s':>9}{'GB/s':>9}{'of peak':>9}{'bnn_ext is':>14}")

    def compare(
        self,
        what: str,
        shape: str,
        ours: Sequence[Implementation],
        peers: Peers,
        alone: Sequence[Implementation] = (),
    ) -> None:
        """Times ours, their limits and the peers together; names each peer that cannot run.

        Args:
            what: the operator.
            shape: of its input; with `what` the name of the problem.
            ours: the table compares all others with the first of them.
            peers: by name, what prepares each, or raises what keeps it from running.
            alone: pieces of the problem, timed with the others as parts of the first of ours.
        """
        limits = dict.fromkeys(i.limit for i in ours if i.limit)
        implementations = [*limits, *ours]
        missing = {}
        for name, prepare in peers.items():
            try:
                implementations += prepare()
            except Missing as reason:
                missing[name] = str(reason)
            except ModuleNotFoundError as error:
                missing[name] = f"{error.name} is not installed (pip install 'bnn_ext[bench]')"
        timings = measure([*implementations, *alone], self.options.rounds)
        timings, of_pieces = timings[: len(implementations)], timings[len(implementations) :]
        fastest = {i: t.fastest for i, t in zip(implementations, timings, strict=True)}

        our_seconds = timings[len(limits)].median
        our_rate = ours[0].work / our_seconds
        for implementation, timing in zip(implementations, timings, strict=True):
            threads = implementation.threads or self.options.threads
            limit = implementation if implementation in limits else implementation.limit
            peak = None
            if limit:  # not an average: its fastest block counts, and threads multiply it
                limit_threads = limit.threads or self.options.threads
                peak = limit.work / fastest[limit] * threads / limit_threads
            row = _row(what, shape, implementation, timing, peak, threads)
            self.rows.append(row)
            ratio = our_rate * timing.median / implementation.work
            print(_line(row) + ("" if implementation in limits else f"{ratio:>7.2f}x as fast"))
        for name, reason in missing.items():
            self.missing.append({"what": what, "shape": shape, "impl": name, "reason": reason})
            print(f"{shape:<20}{name:<32}missing: {reason}")
        pieces = [
            Part("torch float32 alone", piece.name, 1, seconds, seconds / our_seconds)
            for piece, (seconds, *_) in zip(alone, of_pieces, strict=True)
        ]
        self._add_parts(what, shape, pieces)

    def divide(
        self, what: str, shape: str, implementations: Mapping[str, Callable[[], Sequence[Part]]]
    ) -> None:
        """Notes where the time of each goes; what `compare` missed is missing here, too.

        Args:
            what, shape: name of the problem.
            implementations: by name, what finds the parts of each.
        """
        for find_parts in implementations.values():
            with contextlib.suppress(Missing, ModuleNotFoundError):
                self._add_parts(what, shape, find_parts())

    def _add_parts(self, what: str, shape: str, parts: Sequence[Part]) -> None:
        for part in parts:
            self.parts.append(
                {
                    "what": what,
                    "shape": shape,
                    "impl": part.implementation,
                    "part": part.name,
                    "count": part.count,
                    "ms": round(1e3 * part.seconds, 6),
                    "share": round(part.share, 4),
                }
            )
            line = f"{shape:<20}{part.implementation:<20}{part.count:>4} x {part.name:<50}"
            print(f"{line}{1e3 * part.seconds:>10.4f}{part.share:>8.1%}")

    def write(self, name: str) -> None:
        """Writes what was compared since the last `write` as `<results>/<cpu>/<name>.json`."""
        isa = os.environ.get("ONEDNN_MAX_CPU_ISA")
        suffix = f"_onednn_{isa.lower()}" if isa else ""
        document = {
            "commit": provenance.commit(),
            "date": provenance.now(),
            "cpu_level": _C.cpu_capabilities()[-1],
            "onednn_max_cpu_isa": isa,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "bnn_ext": bnn_ext.__version__,
                "openvino": provenance.version("openvino"),
                "onnxruntime": provenance.version("onnxruntime"),
            },
            "read_gbytes_per_s": self.bandwidths,
            "missing": self.missing,
            "rows": self.rows,
            "parts": self.parts,
        }
        path = self.options.results / cpu_folder() / f"{name}{suffix}.json"
        provenance.write(path, document)
        self.rows, self.missing, self.parts = [], [], []


def _row(
    what: str,
    shape: str,
    implementation: Implementation,
    timing: Timing,
    peak: float | None,
    threads: int,
) -> dict[str, Any]:
    level = f" {implementation.level}" if implementation.level else ""
    macs = implementation.macs
    return {
        "device": cpu_name(),
        "what": what,
        "shape": shape,
        "impl": implementation.name + level,
        "output_dtype": implementation.output_dtype,
        "threads": threads,
        "median_ms": round(1e3 * timing.median, 6),
        "spread": round(timing.spread, 4),
        "gmacs": None if macs is None else round(macs / timing.median / 1e9, 2),
        "fraction_of_peak": round(implementation.work / timing.median / peak, 4) if peak else None,
        "bytes": implementation.bytes,
    }


def _line(row: Mapping[str, Any]) -> str:
    """All but the last column, which compares two rows."""

    def column(value: float | None, form: str) -> str:
        return f"{'':>9}" if value is None else format(value, f">9{form}")

    gbytes_per_s = None if row["bytes"] is None else row["bytes"] / row["median_ms"] / 1e6
    line = f"{row['shape']:<20}{row['impl']:<32}{row['output_dtype'] or '':<10}"
    line += f"{row['median_ms']:>10.4f}{row['spread']:>8.0%}"
    line += column(row["gmacs"], ".1f") + column(gbytes_per_s, ".1f")
    return line + column(row["fraction_of_peak"], ".0%")


# --- the machine and the software -----------------------------------------------------------------


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
