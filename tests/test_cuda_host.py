"""CUDA kernels run whole under an emulator, on the host: no GPU, no CUDA compiler."""

from __future__ import annotations

from pathlib import Path

import host_programs


def test_emulator(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_host/emulator_test.cpp", tmp_path))


def test_kernels_that_memory_bounds(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_host/stream_test.cpp", tmp_path))


def test_kernels_of_mma(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_host/gemm_test.cpp", tmp_path))
