"""Test programs in C++ that run CUDA sources on the host: no GPU, no CUDA compiler."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from torch.utils import cpp_extension

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def _compiler() -> list[str]:
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++"):
        if path := shutil.which(name):
            return [path]
    pytest.skip("needs a C++ compiler")


def _build(source: Path, program: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    # -iquote goes before -I: "cuda/ptx.cuh" is that of the emulator.
    command = [*_compiler(), "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra"]
    command += ["-Wno-unknown-pragmas", "-iquote", str(TESTS / "cuda_host"), "-iquote", str(TESTS)]
    command += [f"-I{ROOT / 'csrc'}", *flags]
    for folder in cpp_extension.include_paths():  # torch's, for its 16-bit floats
        command += ["-isystem", folder]
    command += [str(source), "-o", str(program)]
    return subprocess.run(command, capture_output=True, text=True)


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True)


@functools.cache
def sanitizers() -> list[str]:
    """Flags that also catch reads past the end, where the compiler has them."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text("int main() { return 0; }\n")
        works = _build(source, program, SANITIZERS).returncode == 0
        works = works and _run(program).returncode == 0
    return SANITIZERS if works else []


def build(source: str, folder: Path, *flags: str) -> Path:
    """Compiles a program of this folder, with sanitizers where there are any."""
    program = folder / Path(source).stem
    result = _build(TESTS / source, program, [*sanitizers(), *flags])
    assert result.returncode == 0, result.stderr
    return program


def run(program: Path, *arguments: str) -> None:
    """Runs it: it prints what is wrong and ends with another status than 0."""
    result = _run(program, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
