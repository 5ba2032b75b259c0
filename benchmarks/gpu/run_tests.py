"""Runs the test suite, the CUDA tests first and by themselves, and counts outcomes by file."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import provenance
from gpu import pytest_run

CUDA_TESTS = "test_cuda.py"


def run_files(files: Sequence[str], deadline: float, jobs: int) -> dict[str, dict[str, Any]]:
    """What became of each file; prints it as soon as the file is done."""

    def run(file: str, options: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
        result = pytest_run.run(file, max(deadline - time.monotonic(), 0), options)
        print(f"--- {file}\n{result.pop('output')}", flush=True)
        return file, result

    # Only the CUDA tests do without conftest.py, which needs hypothesis.
    options = () if find_spec("hypothesis") else ("--noconftest",)
    results = dict(map(partial(run, options=options), [f for f in files if f == CUDA_TESTS]))
    if find_spec("hypothesis"):
        with ThreadPoolExecutor(jobs) as pool:
            results |= pool.map(run, [file for file in files if file != CUDA_TESTS])
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--files", nargs="+", help="names in tests/ (all)")
    parser.add_argument("--seconds", type=float, default=200, help="then the rest is left (200)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time (CPUs)")
    options = parser.parse_args(arguments)

    files = options.files or sorted(path.name for path in pytest_run.TESTS.glob("test_*.py"))
    missing = [package for package in ("pytest", "hypothesis") if find_spec(package) is None]
    deadline = time.monotonic() + options.seconds
    results = {} if "pytest" in missing else run_files(files, deadline, options.jobs)
    not_run = [file for file in files if file not in results]
    total = {o: sum(result[o] for result in results.values()) for o in pytest_run.OUTCOMES}
    document = {
        **provenance.gpu_header(),
        "missing_packages": missing,
        "files_not_run": not_run,
        "total": total,
        "files": results,
    }
    provenance.write(options.output, document)
    print(total, f"files not run: {not_run}" if not_run else "")
    for file, result in results.items():
        if not pytest_run.all_passed(result):
            print(file, result["broke_off"] or "", *result["failures"])
    complete = not not_run and not total["not_reached"]
    if not complete or not all(map(pytest_run.all_passed, results.values())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
