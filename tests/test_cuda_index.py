"""The index arithmetic of the CUDA kernels, checked on the host: no GPU, no CUDA compiler."""

from __future__ import annotations

from pathlib import Path

import host_programs


def test_index_arithmetic(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_index_test.cpp", tmp_path))
