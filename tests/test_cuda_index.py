"""The index arithmetic of the CUDA kernels, checked on the host: no GPU, no CUDA compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def _compiler() -> list[str]:
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++"):
        if path := shutil.which(name):
            return [path]
    pytest.skip("needs a C++ compiler")


def _build(source: Path, program: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    command = [*_compiler(), "-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{ROOT / 'csrc'}", *flags]
    command += [str(source), "-o", str(program)]
    return subprocess.run(command, capture_output=True, text=True)


def _run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.fixture
def sanitizers(tmp_path: Path) -> list[str]:
    """Flags that also catch reads past the end, where the compiler has them."""
    source, program = tmp_path / "probe.cpp", tmp_path / "probe"
    source.write_text("int main() { return 0; }\n")
    works = _build(source, program, SANITIZERS).returncode == 0 and _run(program).returncode == 0
    return SANITIZERS if works else []


def test_index_arithmetic(tmp_path: Path, sanitizers: list[str]) -> None:
    program = tmp_path / "cuda_index_test"
    build = _build(ROOT / "tests" / "cuda_index_test.cpp", program, sanitizers)
    assert build.returncode == 0, build.stderr
    result = _run(program)
    assert result.returncode == 0, result.stdout + result.stderr
