"""Machine code of CUDA kernels as nvdisasm prints it: functions and their loops."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest


def nvdisasm() -> str:
    """That of the CUDA toolkit, or of the package nvidia-cuda-nvdisasm."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvdisasm"))
    program = shutil.which("nvdisasm") or (packaged and str(packaged[-1]))
    if not program:
        pytest.skip("needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
    return program


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The labels and instructions of every function, by its mangled name."""
    command = [nvdisasm(), "--print-code", str(cubin)]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions: dict[str, list[str]] = {}
    for line in code.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            lines = functions.setdefault(section[1], [])
        elif label := re.match(r"(\.L_x_\d+):", line):
            lines.append(label[1])
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            lines.append(instruction[1])
    return functions


def loops(function: list[str]) -> list[list[str]]:
    """From the label that a branch goes back to, up to that branch."""
    labels = {line: i for i, line in enumerate(function) if line.startswith(".L")}
    found = []
    for i, line in enumerate(function):
        branch = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", line)
        if branch and labels[branch[1]] < i:
            found.append(function[labels[branch[1]] + 1 : i + 1])
    return found
