"""The kernels of wgmma: whole under an emulator, and their machine code. No GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import host_programs
import pytest
from machine_code import disassemble, loops
from torch.utils import cpp_extension

CSRC = Path(__file__).resolve().parents[1] / "csrc"


# --- under the emulator ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host_programs.build("cuda_host/gemm_sm90_test.cpp", tmp_path_factory.mktemp("sm90"))


def test_kernels(program: Path) -> None:
    host_programs.run(program, "1", "12")


WAITS = ["mbarrier_wait", "wgmma_wait", "copy_async_wait"]


@pytest.mark.parametrize("name", [*WAITS, "fence_proxy_async", "wgmma_fence", "sync_barrier"])
def test_what_is_left_out_is_missed(program: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        host_programs.run(program, "1", "12", name)


# --- machine code ---------------------------------------------------------------------------------

# Shape, finish, and the columns of its wgmma. The other combinations differ in the epilogue.
KERNELS = [("Large", "StoreBits", 256), ("Medium", "StoreSum", 128), ("Small", "StoreFused", 64)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], str]:
    """The functions for 9.0a, and what ptxas says about them."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("machine_code")
    source = '#include "cuda/gemm_sm90.cuh"\nnamespace bnn_ext::cuda::sm90 {\n'
    for shape, finish, _ in KERNELS:
        parameters = f"const __grid_constant__ Gemm, const __grid_constant__ {finish}"
        source += f"template __global__ void gemm_sm90_kernel<{shape}>({parameters});\n"
    (folder / "kernels.cu").write_text(source + "}\n")
    command = ["nvcc", "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-cubin"]
    command += ["-Xptxas=-v", f"-I{CSRC}"]
    for include in cpp_extension.include_paths():
        command += ["-isystem", include]
    command += [str(folder / "kernels.cu"), "-o", str(folder / "kernels.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return disassemble(folder / "kernels.cubin"), result.stderr


def test_registers_and_no_spills(compiled) -> None:
    _, messages = compiled
    assert re.findall(r"Used (\d+) registers", messages) == ["80", "128", "168"]
    assert messages.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 3
    assert not re.search(r"C75\d\d", messages), messages  # wgmma serialized, setmaxnreg ignored


def kernel_of(functions: dict[str, list[str]], finish: str) -> list[str]:
    (found,) = [code for name, code in functions.items() if finish in name]
    return found


@pytest.mark.parametrize("shape, finish, columns", KERNELS)
def test_main_loops(compiled, shape: str, finish: str, columns: int) -> None:
    function = kernel_of(compiled[0], finish)
    multiply = f"BGMMA.64x{columns}x256.AND.POPC"
    # The loop over slabs: the instruction four times, or in a loop for the rest of the last slab.
    around = [loop for loop in loops(function) if sum(multiply in line for line in loop) == 5]
    slabs = min(around, key=len)
    assert sum("DEPBAR" in line for line in slabs) == 1
    assert sum("POPC R" in line and "BGMMA" not in line for line in slabs) == 16
    assert sum(line.startswith("LDS.128") for line in slabs) == 4
    # By something else than 0, which is a move, or a power of two, which is a shift.
    product = r"\bU?IMAD[.\w]*\s+\S+,\s+(?!U?RZ)\S+,\s+(?!U?RZ|0x[1248]0*,)"
    assert not [line for line in slabs if re.search(product, line)]
    assert not [line for line in slabs if re.search(r"\b(LDL|STL|LDG|STG|LD|ST)\b", line)]

    loads = [line for line in function if "UTMALDG.2D" in line]
    assert len(loads) == 3  # A and B, B alone
    assert any("LDGSTS.E.BYPASS.128" in line for line in function)


def test_registers_of_the_producer(compiled) -> None:
    """After setmaxnreg.dec only so many registers are left; nothing checks that at run time."""
    for _, finish, _ in KERNELS:
        function = kernel_of(compiled[0], finish)
        (begin,) = [i for i, line in enumerate(function) if "USETMAXREG.DEALLOC" in line]
        end = max(i for i, line in enumerate(function) if "LDGSTS" in line)
        used = [int(r) for line in function[begin:end] for r in re.findall(r"\bR(\d+)", line)]
        assert max(used) < 40
