"""Test files in a pytest process of their own, and what became of each of their tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

BENCHMARKS = Path(__file__).resolve().parents[1]
TESTS = BENCHMARKS.parent / "tests"
NOT_REACHED = "the time was up"  # why gpu/time_limit.py skips a test
OUTCOMES = ("passed", "failed", "errors", "skipped", "not_reached")
EXIT_CODES = (0, 1, 5)  # of pytest: all passed, some failed, no tests; others say it broke off
GRACE = 60.0  # seconds for the test that runs when the time is up, and to start and to stop


def run(
    file: str,
    seconds: float,
    options: Sequence[str] = (),
    under: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs a file of tests/; what it prints stands in "output".

    A process of its own keeps the other files from an error that ends or poisons it, as CUDA's do.
    It runs in benchmarks/: beside the package's sources Python would import those, without the
    compiled operators.

    Args:
        file: its name.
        seconds: after which its remaining tests are left out.
        options: more of pytest's.
        under: a program to run it under, with that program's options.
        environment: variables to add.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [*under, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "gpu.time_limit", f"--stop-after={seconds}", f"--junit-xml={report}"]
        command += [*options, str(TESTS / file)]
        status, output = _run_group(
            command, seconds + GRACE, dict(os.environ) | (environment or {})
        )
        tests = summary(report.read_text()) if report.exists() else summary("<testsuites/>")
    broke_off = None if status in EXIT_CODES else f"exit status {status}"
    return {"broke_off": broke_off, **tests, "output": output}


def _run_group(
    command: Sequence[str], seconds: float, environment: Mapping[str, str]
) -> tuple[int | str, str]:
    """Exit status and output of a program, which is ended with all that it started in time."""
    process = subprocess.Popen(
        command,
        cwd=BENCHMARKS,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return f"none: ended after {seconds:.0f} s", output


def summary(junit_xml: str) -> dict[str, Any]:
    """Numbers of tests by outcome, the failed ones by name, and why tests were skipped."""
    counts, failures, reasons = Counter[str](), list[str](), Counter[str]()
    seconds = 0.0
    for case in ElementTree.fromstring(junit_xml).iter("testcase"):
        seconds += float(case.get("time", 0))
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["errors" if case.find("failure") is None else "failed"] += 1
            failures.append(case.get("name", ""))
        elif skip is None:
            counts["passed"] += 1
        elif skip.get("message") == NOT_REACHED:
            counts["not_reached"] += 1
        else:
            counts["skipped"] += 1
            reasons[skip.get("message", "")] += 1
    return {
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "seconds": round(seconds, 2),
        "failures": failures,
        "skip_reasons": dict(reasons),
    }


def all_passed(result: Mapping[str, Any]) -> bool:
    """Every test that was reached ran without a failure, and there was one."""
    bad = result["failed"] or result["errors"] or result["broke_off"]
    return result["passed"] > 0 and not bad
