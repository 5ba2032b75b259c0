"""Where a figure comes from: the commit, the versions, the GPU; and how its file is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def commit() -> str | None:
    """What BNN_EXT_COMMIT says, for a copy without its repository; else the checkout's commit.

    The checkout's is marked if files other than earlier results differ from it, and None outside
    a repository.
    """
    if "BNN_EXT_COMMIT" in os.environ:
        return os.environ["BNN_EXT_COMMIT"]
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ":/", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def gpu_header() -> dict[str, Any]:
    """What every file of figures from a GPU begins with; the device is None where there is none."""
    return {
        "commit": commit(),
        "date": now(),
        "device": _gpu() if torch.cuda.is_available() else None,
        "driver": _last_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "nvcc": _last_line("nvcc", "--version"),
            "bnn_ext": version("bnn_ext"),
        },
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }


def _last_line(*command: str) -> str | None:
    """What a program says last, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().rpartition("\n")[2]


def write(path: Path, document: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"written to {path}")
