"""CUDA kernels run whole under an emulator, on the host: no GPU, no CUDA compiler."""

from __future__ import annotations

from pathlib import Path

import host_programs
import pytest


def test_emulator(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_host/emulator_test.cpp", tmp_path))


@pytest.fixture(scope="module")
def stream_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host_programs.build("cuda_host/stream_test.cpp", tmp_path_factory.mktemp("stream"))


def test_kernels_that_memory_bounds(stream_test: Path) -> None:
    host_programs.run(stream_test)


@pytest.mark.parametrize("name", ["sync_threads", "copy_async_wait"])
def test_what_tables_leave_out_is_missed(stream_test: Path, name: str) -> None:
    with pytest.raises(AssertionError, match="signed sums"):
        host_programs.run(stream_test, name)


def test_kernels_of_mma(tmp_path: Path) -> None:
    host_programs.run(host_programs.build("cuda_host/gemm_test.cpp", tmp_path))
