"""What nvcc makes of the kernels: the instructions of their main loops. No GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from machine_code import disassemble, loops
from torch.utils import cpp_extension

TESTS = Path(__file__).resolve().parent
STEPS = 2  # of 256 bits, in a slab, which is what one round of the main loop multiplies

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def build(source: str, architecture: str, cubin: Path) -> None:
    """Compiles a file of this folder; kernels must keep everything in registers."""
    includes = [f"-I{folder}" for folder in (TESTS.parent / "csrc", *cpp_extension.include_paths())]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", target, *includes]
    command = ["nvcc", *options, "-cubin", "-o", str(cubin), str(TESTS / source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill", result.stderr)
    assert frames and set(frames) == {("0", "0")}, result.stderr


def operation(instruction: str) -> str:
    """Its name with all suffixes, without the predicate before it."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def multiplies(instruction: str) -> bool:
    """Whether it multiplies integers: IMAD is also a move, an addition, a carry and a shift."""
    name = operation(instruction)
    return bool(re.match(r"U?IMAD|IMUL|XMAD", name)) and not re.match(
        r"U?IMAD\.(MOV|IADD|X|SHL)\b", name
    )


@pytest.mark.parametrize("architecture", ["75", "80", "90a"])
def test_main_loops_of_mma(tmp_path, architecture):
    cubin = tmp_path / "kernels.cubin"
    build("cuda_kernels.cu", architecture, cubin)
    functions = disassemble(cubin)
    assert len(functions) == 6
    for name, function in functions.items():
        tile = re.search(r"TileILi(\d)ELi(\d)ELi(\d)ELi(\d)EEELi(\d+)E", name)
        assert tile is not None
        warps_m, warps_n, blocks_m, words_n, chunk = map(int, tile.groups())
        (loop,) = [loop for loop in loops(function) if any("BMMA" in line for line in loop)]
        names = [operation(line) for line in loop if not line.startswith(".L")]

        products = blocks_m * 4 * words_n  # of 16 rows and 8 columns
        if architecture == "75":
            expected = ["BMMA.88128.XOR.POPC"] * (STEPS * 4 * products)
        elif architecture == "80":
            expected = ["BMMA.168256.XOR.POPC"] * (STEPS * products)
        else:  # and the popcounts of the rows
            expected = ["BMMA.168256.AND.POPC"] * (STEPS * (products + blocks_m))
        assert [n for n in names if n.startswith("BMMA")] == expected

        # Fragments: four matrices at a time, of 16 rows each.
        fragments = STEPS * (blocks_m + 2 * words_n)
        assert [n for n in names if n.startswith("LDSM")] == ["LDSM.16.M88.4"] * fragments

        rows = 16 * blocks_m * warps_m + 32 * words_n * warps_n
        copies = rows * 64 // chunk // (32 * warps_m * warps_n)
        width = {4: "", 8: ".64", 16: ".128"}[chunk]
        if architecture == "75":  # loads and then stores
            assert sum(n == f"STS{width}" for n in names) == copies
            assert {n for n in names if n.startswith("LDG")} <= {f"LDG.E{width}.SYS"}
        else:
            found = [n for n in names if n.startswith("LDGSTS")]
            assert found == ["LDGSTS.E" + (".BYPASS" if chunk == 16 else "") + width] * copies

        assert not [n for n in names if n.startswith(("LDL", "STL"))]
        # On 7.5, nvcc computes some addresses of columns anew rather than keep them.
        if architecture != "75":
            assert not [line for line in loop if not line.startswith(".L") and multiplies(line)]


@pytest.fixture(scope="module", params=["80", "90a"])
def stream_kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    cubin = tmp_path_factory.mktemp("stream") / "kernels.cubin"
    build("cuda_stream_kernels.cu", request.param, cubin)
    return disassemble(cubin)


def test_kernels_that_memory_bounds_move_16_bytes_at_a_time(
    stream_kernels: dict[str, list[str]],
) -> None:
    assert len(stream_kernels) == 16  # with flatten, which is no template
    for name, function in stream_kernels.items():
        names = {operation(line) for line in function if not line.startswith(".L")}
        assert not [n for n in names if n.startswith(("LDL", "STL"))], name
        # What packing reads and unpacking writes is many times as much as the bits. Tables are
        # made of four values at a time, of 2 bytes or 4.
        if not re.search("unpack|flatten|select_channels|tables", name):
            assert any(n.startswith("LDG.E.128") for n in names), name
        if "tables" in name:
            assert "LDGSTS.E.BYPASS.128" in names, name
        if re.search("unpack|pool|elementwise|select_channels", name):
            assert any(n.startswith("STG.E.128") for n in names), name


def test_signs_of_four_weights_take_few_instructions(stream_kernels: dict[str, list[str]]) -> None:
    found = [function for name, function in stream_kernels.items() if "signed_tables" in name]
    assert len(found) == 2
    for function in found:
        stages = max(loops(function), key=len)  # two of them: of four words, eight sums in each
        lines = [line for line in stages if not line.startswith((".L", "@!PT "))]
        names = [operation(line) for line in lines]
        sums = 2 * 4 * 8
        assert names.count("LDS") == names.count("PRMT") == sums
        assert names.count("LDS.128") == 2
        # One more addition for each of them, a shift and a mask for each four, an access to global
        # memory, its address and barriers for each stage; and what makes the tables in two turns,
        # of which a warp takes one or none where a block has more than a group.
        assert len(names) <= 6.2 * sums
        # The sums of a stage by themselves.
        places = [i for i, name in enumerate(names) if name == "LDS"]
        assert places[sums // 2 - 1] - places[0] <= 3.9 * (sums // 2)
        # By something else than a power of two, which is a shift.
        assert not [
            line for line in lines if multiplies(line) and not re.search(r", 0x[1248]0*, ", line)
        ]
