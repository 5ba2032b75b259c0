"""Runs the CUDA tests under compute-sanitizer's memcheck and racecheck, and lists what they find.

Both are slow. Within its time each tool reaches some of every test function's parameters; the file
says how many, and which tests were left out on purpose.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import provenance
from gpu import pytest_run

CUDA_TESTS = "test_cuda.py"


class Tool(NamedTuple):
    """A tool of compute-sanitizer, and how the tests run under it."""

    options: Sequence[str] = ()
    tests: str = ""  # pytest's -k
    environment: dict[str, str] = {}


TOOLS = {
    # Without torch's cache every tensor is an allocation of its own, and a read past its end is
    # seen. Then no tensor can be made while a graph is captured.
    "memcheck": Tool(
        ("--report-api-errors", "no"),  # torch asks for what a driver may not have
        "not without_synchronizing",
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
    "racecheck": Tool(),
}

# The last lines that a tool prints: once for every process, and only if it saw that to its end.
_SUMMARY = re.compile(
    r"ERROR SUMMARY: (\d+) errors?$"
    r"|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)"
)
_IGNORED = re.compile(r"COMPUTE-SANITIZER|\w+ SUMMARY:|$")


def parse(log: str) -> dict[str, Any]:
    """What a tool's log says.

    Returns:
        "errors": what the tool counted in all, or None if it did not come to an end.
        "findings": what it printed of each, with the lines on where (no host backtrace), the most
        frequent first.
    """
    lines = [line[10:].rstrip() for line in log.splitlines() if line.startswith("=========")]
    summaries = list(filter(None, map(_SUMMARY.match, lines)))
    counts = [int(count) for match in summaries for count in match.groups() if count]

    findings: list[list[str]] = []
    for line in lines:
        if _IGNORED.match(line):
            continue
        if not line.startswith(" "):
            findings.append([line])
        elif findings and re.match(r" {4}(?!Saved|Host)\S", line):
            findings[-1].append(line.strip())
    grouped = Counter((what, *_without_threads(where)) for what, *where in findings)
    return {
        "errors": sum(counts) if summaries else None,
        "findings": [
            {"count": count, "what": what, "where": list(where)}
            for (what, *where), count in grouped.most_common()
        ],
    }


def _without_threads(where: Sequence[str]) -> list[str]:
    """Without what is different for every thread that did the same."""
    return [line for line in where if not re.match(r"by thread|Access |and is ", line)]


def check(tool: str, seconds: float) -> dict[str, Any]:
    options, tests, environment = TOOLS[tool]
    with tempfile.TemporaryDirectory() as folder:
        under = ["compute-sanitizer", "--tool", tool, *options, "--log-file", f"{folder}/%p.log"]
        result = pytest_run.run(CUDA_TESTS, seconds, ["-k", tests], under, environment)
        log = "".join(path.read_text() for path in sorted(Path(folder).iterdir()))
    print(f"--- {tool}\n{result.pop('output')}\n{log}", flush=True)
    return {"selection": tests or "all", "tests": result, **parse(log)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for each tool (60)")
    options = parser.parse_args(arguments)
    if shutil.which("compute-sanitizer") is None:
        raise SystemExit("compute-sanitizer, of the CUDA toolkit, is not on PATH")

    tools = {tool: check(tool, options.seconds) for tool in TOOLS}
    provenance.write(options.output, {**provenance.gpu_header(), "tools": tools})
    clean = True
    for tool, found in tools.items():
        tests = {outcome: found["tests"][outcome] for outcome in pytest_run.OUTCOMES}
        print(f"{tool}: {found['errors']} errors, tests: {tests}")
        clean &= found["errors"] == 0 and not found["findings"]
        clean &= pytest_run.all_passed(found["tests"])
    if not clean:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
