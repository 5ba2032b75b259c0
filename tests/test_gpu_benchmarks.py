"""What runs on a machine with a GPU (benchmarks/run_on_gpu.sh), as far as it runs without one."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from machine_code import disassemble, loops
from torch import nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext import ops, reference

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "run_on_gpu.sh"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def write_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(script)
    path.chmod(0o755)


# --- tests ----------------------------------------------------------------------------------------

SOME_TESTS = """
import pytest

@pytest.fixture
def broken():
    raise RuntimeError

@pytest.mark.parametrize("number", [1, 2, 3])
def test_passes(number):
    pass

def test_fails():
    print("what a failure looked like")
    assert False

def test_has_an_error(broken):
    pass

@pytest.mark.skip(reason="needs two moons")
def test_is_skipped():
    pass
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """An empty folder in the place of tests/."""
    folder = tmp_path / "suite"
    folder.mkdir()
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts faster
    monkeypatch.setattr("gpu.pytest_run.TESTS", folder)
    return folder


def counts(result: dict) -> list[int]:
    from gpu.pytest_run import OUTCOMES

    return [result[outcome] for outcome in OUTCOMES]


def test_outcomes_of_a_file(suite):
    from gpu import pytest_run

    (suite / "test_some.py").write_text(SOME_TESTS)
    result = pytest_run.run("test_some.py", seconds=60)
    assert counts(result) == [3, 1, 1, 1, 0]
    assert result["failures"] == ["test_fails", "test_has_an_error"]
    assert result["skip_reasons"] == {"needs two moons": 1}
    assert result["broke_off"] is None
    assert "what a failure looked like" in result["output"]
    assert not pytest_run.all_passed(result)

    chosen = pytest_run.run("test_some.py", seconds=60, options=["-k", "passes"])
    assert counts(chosen) == [3, 0, 0, 0, 0]
    assert pytest_run.all_passed(chosen)


def test_when_the_time_is_up_the_rest_is_not_reached(suite):
    from gpu import pytest_run

    later = "from gpu import time_limit\ndef test_lasts(): time_limit._START -= 1000\n"
    (suite / "test_some.py").write_text(later + SOME_TESTS)
    result = pytest_run.run("test_some.py", seconds=60)
    assert counts(result) == [1, 0, 0, 0, 6]
    assert result["skip_reasons"] == {}


def test_functions_take_turns(suite):
    from gpu import pytest_run

    (suite / "test_some.py").write_text(SOME_TESTS)
    output = pytest_run.run("test_some.py", seconds=60, options=["-vv"])["output"]
    order = re.findall(r"::(test_\w+)\S* (?:PASSED|FAILED|ERROR|SKIPPED)", output)
    others = ["test_fails", "test_has_an_error", "test_is_skipped"]
    assert order == ["test_passes", *others, "test_passes", "test_passes"]


def test_a_file_that_crashes_or_hangs_is_told_from_one_that_passes(suite, monkeypatch):
    from gpu import pytest_run

    (suite / "test_crash.py").write_text("import os\ndef test(): os.abort()\n")
    crashed = pytest_run.run("test_crash.py", seconds=60)
    assert crashed["broke_off"].startswith("exit status")
    assert not pytest_run.all_passed(crashed)

    (suite / "test_hang.py").write_text("import time\ndef test(): time.sleep(100)\n")
    monkeypatch.setattr("gpu.pytest_run.GRACE", 1.0)
    hung = pytest_run.run("test_hang.py", seconds=2)
    assert hung["broke_off"] == "exit status none: ended after 3 s"
    assert counts(hung) == [0] * 5


def test_the_suite_is_counted_by_file(suite, tmp_path, monkeypatch, capsys):
    from gpu import run_tests

    monkeypatch.setenv("BNN_EXT_COMMIT", "1234567")
    (suite / "test_cuda.py").write_text("def test_one(): pass\n")
    (suite / "test_other.py").write_text("def test_two(): pass\ndef test_three(): pass\n")
    output = tmp_path / "results/tests.json"
    run_tests.main([str(output)])
    document = json.loads(output.read_text())
    assert document["commit"] == "1234567"
    assert set(document["versions"]) == {"python", "torch", "cudnn", "nvcc", "bnn_ext"}
    assert {file: result["passed"] for file, result in document["files"].items()} == {
        "test_cuda.py": 1,
        "test_other.py": 2,
    }
    assert document["total"]["passed"] == 3
    assert "2 passed" in capsys.readouterr().out

    (suite / "test_other.py").write_text("def test_two(): assert False\n")
    with pytest.raises(SystemExit, match="1"):
        run_tests.main([str(output)])
    assert json.loads(output.read_text())["total"]["failed"] == 1


@pytest.mark.parametrize("missing, left", [("hypothesis", 1), ("pytest", 2)])
def test_packages_that_are_missing_are_named(suite, tmp_path, monkeypatch, missing, left):
    from gpu import run_tests

    (suite / "conftest.py").write_text("import no_such_package")
    (suite / "test_cuda.py").write_text("def test_one(): pass\n")
    (suite / "test_other.py").write_text("def test_two(): pass\n")
    monkeypatch.setattr(run_tests, "find_spec", lambda name: None if name == missing else "there")
    with pytest.raises(SystemExit, match="1"):
        run_tests.main([str(tmp_path / "tests.json")])
    document = json.loads((tmp_path / "tests.json").read_text())
    assert document["missing_packages"] == [missing]
    assert document["files_not_run"] == ["test_cuda.py", "test_other.py"][-left:]
    assert document["total"]["passed"] == 2 - left


# --- sanitize -------------------------------------------------------------------------------------

OUT_OF_BOUNDS = """\
========= Invalid __global__ write of size 4 bytes
=========     at void bnn_ext::cuda::words_kernel<bnn_ext::cuda::TileWeight>(T1, long)+0x5d0
=========     by thread ({thread},0,0) in block (0,0,0)
=========     Access to 0x7f{thread:02d}5a000280 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f575a000200 of size 128 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cudaLaunchKernel [0x5a3b0] in _C_cuda.abi3.so
=========         Host Frame: main [0x1] in python3
=========
"""
MEMCHECK = (
    "========= COMPUTE-SANITIZER\n"
    + "".join(OUT_OF_BOUNDS.format(thread=thread) for thread in (32, 33, 34))
    + "========= ERROR SUMMARY: 40 errors\n"
    "========= ERROR SUMMARY: 37 errors were not printed. "
    "Use --print-limit option to adjust the number of printed errors\n"
)
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void gemm<(int)128>(Arguments)+0x1a0
=========     and Read access at void gemm<(int)128>(Arguments)+0x2b0 [508 hazards]
=========     and Read access at void gemm<(int)128>(Arguments)+0x2c0 [508 hazards]
=========
========= Warning: Race reported between Write access at void gemm<(int)128>(Arguments)+0x1a0
=========     and Write access at void gemm<(int)128>(Arguments)+0x1a0 [4 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


def test_the_same_error_of_many_threads_is_one_finding():
    from gpu import sanitize

    found = sanitize.parse(MEMCHECK)
    assert found["errors"] == 40
    (finding,) = found["findings"]
    assert finding["count"] == 3
    assert finding["what"] == "Invalid __global__ write of size 4 bytes"
    (where,) = finding["where"]
    assert where.startswith("at void bnn_ext::cuda::words_kernel") and where.endswith("+0x5d0")


def test_races_and_warnings_are_findings():
    from gpu import sanitize

    found = sanitize.parse(RACECHECK)
    assert found["errors"] == 2
    error, warning = found["findings"]
    assert error["what"].startswith("Error: Race reported between Write access at void gemm<")
    assert [line[-13:] for line in error["where"]] == ["[508 hazards]"] * 2
    assert warning["what"].startswith("Warning: Race reported")


@pytest.mark.parametrize(
    "summary",
    ["ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"],
)
def test_a_clean_log_has_no_findings(summary):
    from gpu import sanitize

    log = f"========= COMPUTE-SANITIZER\n========= {summary}\n"
    assert sanitize.parse(log) == {"errors": 0, "findings": []}
    two_processes = sanitize.parse(log + MEMCHECK)
    assert two_processes["errors"] == 40


@pytest.mark.parametrize("last", ["Device not supported", "Internal Sanitizer Error: unknown"])
def test_a_log_without_a_summary_is_not_clean(last):
    from gpu import sanitize

    found = sanitize.parse(f"========= COMPUTE-SANITIZER\n========= {last}\n")
    assert found == {"errors": None, "findings": [{"count": 1, "what": last, "where": []}]}
    assert sanitize.parse("")["errors"] is None


# Runs the program, as compute-sanitizer does, and writes what $FOUND says as its log.
FAKE_SANITIZER = """#!/bin/sh
while [ "$1" != --log-file ]; do shift; done
printf "$FOUND" >"$(echo "$2" | sed "s/%p/$$/")"
shift 2
exec "$@"
"""


@pytest.mark.parametrize("found, errors", [("0 errors", 0), ("1 error", 1)])
def test_both_tools_run_the_cuda_tests(suite, tmp_path, monkeypatch, capsys, found, errors):
    from gpu import sanitize

    (suite / "test_cuda.py").write_text(
        "import os\n"
        "cached = 'PYTORCH_NO_CUDA_MEMORY_CACHING' not in os.environ\n"
        "def test_allocates(): pass\n"
        "def test_without_synchronizing(): assert cached\n"
    )
    write_program(tmp_path, "compute-sanitizer", FAKE_SANITIZER)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOUND", f"========= ERROR SUMMARY: {found}\\n")
    output = tmp_path / "sanitize.json"
    if errors:
        with pytest.raises(SystemExit, match="1"):
            sanitize.main([str(output)])
    else:
        sanitize.main([str(output)])
    tools = json.loads(output.read_text())["tools"]
    assert {tool: result["tests"]["passed"] for tool, result in tools.items()} == {
        "memcheck": 1,
        "racecheck": 2,
    }
    assert all(result["errors"] == errors for result in tools.values())
    assert f"ERROR SUMMARY: {found}" in capsys.readouterr().out


def test_a_missing_sanitizer_is_named(tmp_path, monkeypatch):
    from gpu import sanitize

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="compute-sanitizer"):
        sanitize.main([str(tmp_path / "sanitize.json")])


# --- ceilings -------------------------------------------------------------------------------------


def test_rates_of_a_ceiling():
    from gpu import ceilings

    line = "BGMMA.64x256x256 registers 8 1 1000000000000 40000000 19.0 20.0 20.0 20.0 21.0"
    assert ceilings.parse(line, multiprocessors=132) == {
        "what": "BGMMA.64x256x256",
        "median_ms": 20.0,
        "spread": 0.05,
        "a_in": "registers",
        "warps": 8,
        "correct": True,
        "macs": 132 * 10**12,
        "macs_per_cycle": 25000,
        "tera_ops_per_s": 13200.0,
    }
    assert not ceilings.parse(line.replace(" 8 1 ", " 8 0 "), 132)["correct"]
    assert ceilings.row("copy", [2.0, 2.0, 2.0], bytes=8 * 10**9)["gbytes_per_s"] == 4000.0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_loops_hold_the_instructions_and_nothing_that_waits(tmp_path):
    from gpu import ceilings

    cubin = tmp_path / "ceilings.cubin"
    options = ["-Werror=all-warnings", "-Xptxas=-v", "-cubin", "-o", str(cubin)]
    command = ["nvcc", *ceilings.NVCC_OPTIONS, *options, str(ceilings.SOURCE)]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    assert not re.search(r"warning|serialized|[1-9]\d* bytes spill", build.stderr), build.stderr

    seen = []
    for name, function in disassemble(cubin).items():
        (loop,) = [loop for loop in loops(function) if any("MMA" in line for line in loop)]
        assert not [line for line in loop if re.match(r"(@!?\w+ )?(LD|ST|ATOM|RED|BAR)", line)]
        matrix = [line for line in loop if "MMA" in line]
        waits = [line for line in loop if "DEPBAR" in line]
        if parameters := re.search(r"BgmmaILi(\d+)ELb([01])ELi(\d)E", name):
            columns, registers = int(parameters[1]), parameters[2] == "1"
            first_operand = r"R\d+, R\d+, gdesc" if registers else r"R\d+, gdesc"
            instruction = rf"BGMMA\.64x{columns}x256\.AND\.POPC {first_operand}"
            assert len(matrix) == 4
            assert waits == ["WARPGROUP.DEPBAR.LE gsb0, 0x1"]  # one group runs on meanwhile
            seen.append((columns, registers, int(parameters[3])))
        else:
            instruction = r"BMMA\.168256\.AND\.POPC"
            assert len(matrix) == 8 and not waits
            seen.append("BMMA")
        assert all(re.match(instruction, line) for line in matrix)
    shapes = [(n, a, g) for n in (128, 256) for a in (False, True) for g in (1, 2)]
    assert sorted(seen, key=str) == sorted([*shapes, *["BMMA"] * 3], key=str)


# --- measuring ------------------------------------------------------------------------------------

WGMMA_REFUSES = "the path wgmma cannot run this"


class Event:
    """By the host's clock."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.time - self.time)


@contextlib.contextmanager
def at_path(path: str) -> Iterator[None]:
    if path == "wgmma":
        raise RuntimeError(f"{WGMMA_REFUSES}\nand the places in C++ that said so")
    yield


@pytest.fixture
def cpu(monkeypatch, one_thread):
    """The CPU in the place of the GPU; it has no path wgmma."""
    from gpu import device

    def use(name: str, value: Any) -> None:
        monkeypatch.setattr(device, name, value)

    monkeypatch.setattr("gpu.timing.BLOCK_MILLISECONDS", 0.01)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    # main() sets these; so they are restored.
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    use("DEVICE", "cpu")
    use("name", lambda: "NVIDIA H200 NVL")
    use("event", Event)
    use("synchronize", lambda: None)
    use("release", lambda: None)
    use("flush_l2", lambda: None)
    use("at_path", at_path)
    use("graphed", lambda run: run)


def measured(main: Callable[[list[str]], None], output: Path, *arguments: str) -> dict:
    main(["--device", "cuda", "--rounds", "2", "--output", str(output), *arguments])
    return json.loads(output.read_text())


def names(rows: list[dict], shape: str) -> list[tuple[str, str]]:
    return [(row["impl"], row["output_dtype"]) for row in rows if row["shape"] == shape]


def test_calls_take_turns_each_at_its_path_with_a_cold_cache(cpu, monkeypatch):
    from gpu import device, timing

    log: list[str] = []
    path = ["auto"]

    @contextlib.contextmanager
    def at_path(name: str) -> Iterator[None]:
        path[0] = name
        yield
        path[0] = "auto"

    monkeypatch.setattr(device, "at_path", at_path)
    monkeypatch.setattr(device, "flush_l2", lambda: log.append("flush"))
    monkeypatch.setattr(device, "synchronize", lambda: log.append("wait"))

    def called(name: str) -> timing.Call:
        def run() -> None:
            time.sleep(1e-4)  # longer than a block: one call in each
            log.append(f"{name} by {path[0]}")

        return timing.Call(run, path=name)

    timings = timing.measure([called("mma"), called("popc")], rounds=2)
    assert all(t is not None and 1e-4 < t.fastest <= t.median < 1 for t in timings)
    mma, popc = (["flush", f"{name} by {name}", "wait"] for name in ("mma", "popc"))
    assert log == [*mma * 2, *popc * 2, *popc, *mma]  # each once to count calls, then two rounds

    log.clear()
    timing.measure([called("mma")], rounds=2, from_idle=True)
    assert log == ["flush", "wait", "mma by mma", "wait"] * 3


def test_what_runs_out_of_memory_or_takes_long_does_not_stop_the_others(cpu, monkeypatch):
    from gpu import timing

    calls = []

    def fails_later() -> None:
        calls.append("fails")
        if calls.count("fails") == 3:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 1e-3)

    def lasts() -> None:
        calls.append("lasts")
        time.sleep(1e-3)

    out_of_memory, long = timing.measure([timing.Call(fails_later), timing.Call(lasts)], rounds=9)
    assert out_of_memory is None
    assert long is not None
    assert (calls.count("fails"), calls.count("lasts")) == (3, 1 + 3)


def test_the_path_is_set_and_given_back(monkeypatch):
    from gpu import device

    seen = []
    module = SimpleNamespace(set_path=seen.append)
    monkeypatch.setattr(bnn_ext, "_C_cuda", module, raising=False)
    with pytest.raises(ValueError), device.at_path("mma"):
        raise ValueError
    assert seen == ["mma", "auto"]


@pytest.mark.parametrize("name", ["gemm", "conv", "models"])
def test_each_device_has_its_options(name, capsys):
    main = importlib.import_module(f"bench_{name}").main
    for device, own in (("cpu", "--threads"), ("cuda", "--seconds")):
        with pytest.raises(SystemExit, match="0"):
            main(["--device", device, "--help"])
        printed = capsys.readouterr().out
        assert "--device {cpu,cuda}" in printed
        assert {option for option in ("--threads", "--seconds") if option in printed} == {own}


def test_without_a_gpu_the_benchmarks_say_so(monkeypatch):
    import bench_gemm

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees none"):
        bench_gemm.main(["--device", "cuda"])


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 128, 1000])
def test_random_operands_are_packed_and_parts_of_results_fit(cpu, channels):
    from gpu.operands import Part, random_bits

    packed = random_bits(5, channels)
    values = reference.unpack(packed, channels)
    assert torch.equal(reference.pack(values), packed)  # so the tail bits are 0
    part = Part(channels)
    assert part.words[0] == 0 and part.words[-1] == reference.words(channels) - 1
    assert torch.equal(part.of_result(values, False), values[:, part.channels])
    bits = part.of_result(packed, True)
    assert torch.equal(bits, reference.pack(part.of_result(values, False)))
    assert torch.equal(part.of(values[0]), values[0, part.channels])


def moved(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_gemm_on_a_gpu(cpu, tmp_path, monkeypatch, capsys):
    import bench_gemm
    from gpu import gemm

    shape, row = bench_gemm.Shape(40, 100, 72), bench_gemm.Shape(1, 64, 33)
    monkeypatch.setattr(gemm, "SHAPES", {"gemm": [shape], "gemv": [row]})
    document = measured(bench_gemm.main, tmp_path / "gemm.json")
    assert document["complete"]
    assert not document["wrong"] and not document["not_reached"]
    outputs = ("bits", "float16", "int32")
    for size, paths in ((shape, ("auto", "popc", "mma")), (row, ("auto", "popc", "gemv", "mma"))):
        assert names(document["rows"], str(size)) == [
            *((f"bnn_ext {path}", output) for output in outputs for path in paths),
            ("torch bf16", "bfloat16"),
            ("torch int8 _int_mm", "int32"),
            ("torch fp8 _scaled_mm", "bfloat16"),
        ]
    for missing in document["missing"]:
        assert missing["impl"] == "bnn_ext wgmma"
        assert missing["reason"] == f"RuntimeError: {WGMMA_REFUSES}"
    assert len(document["missing"]) == 2 * len(outputs)
    printed = capsys.readouterr().out
    assert "1.00x as fast" in printed and f"missing: RuntimeError: {WGMMA_REFUSES}" in printed

    for measurement in document["rows"]:
        assert measurement["device"] == "NVIDIA H200 NVL"
        size = shape if measurement["what"] == "gemm" else row
        operations = measurement["tera_ops_per_s"] * 1e9 * measurement["median_ms"]
        assert operations == pytest.approx(2 * size.macs, rel=0.01, abs=1e5)
        assert (measurement["bytes"] is not None) == measurement["impl"].startswith("bnn_ext")
    problem = gemm.Problem(shape)
    for output, call in gemm.OUTPUTS.items():
        o = problem.operands
        assert gemm.moved_bytes(shape, output) == moved(o.input, o.weight, call(ops, o))


def test_conv_on_a_gpu(cpu, tmp_path, monkeypatch):
    import bench_conv
    from gpu import conv

    shapes = [bench_conv.Shape(40, 33, 5), bench_conv.Shape(64, 40, 6, kernel=1, stride=2)]
    monkeypatch.setattr(conv, "SHAPES", {"resnet18": shapes[:1], "vgg": shapes[1:]})
    document = measured(bench_conv.main, tmp_path / "conv.json", "--batches", "3", "1")
    assert document["complete"] and not document["wrong"]
    problems = dict.fromkeys((row["what"], row["shape"]) for row in document["rows"])
    assert list(problems) == [
        ("conv2d_3x3", "3x40x5x5 -> 33"),
        ("conv2d_1x1_stride2", "3x64x6x6 -> 40"),
        ("conv2d_3x3", "1x40x5x5 -> 33"),
        ("conv2d_1x1_stride2", "1x64x6x6 -> 40"),
    ]
    for _, size in problems:
        assert names(document["rows"], size) == [
            *((f"bnn_ext {path}", "bits") for path in ("auto", "popc", "mma")),
            *(("bnn_ext auto", output) for output in ("int32", "float16", "residual")),
            ("cuDNN fp16 NHWC", "float16"),
            ("torch.compile fp16 NHWC", "float16"),
        ]
    for shape in shapes:
        problem = conv.Problem(shape, batch=3)
        o, image = problem.operands, torch.empty(3, 1, shape.size, shape.size)
        height = nn.functional.conv2d(
            image, torch.empty(1, 1, shape.kernel, shape.kernel), **problem.geometry
        ).shape[2]
        assert conv.out_size(shape) == height
        for output, call in conv.OUTPUTS.items():
            results = call(ops, o, **problem.fixed)
            read = [o.stream, *results] if output == "residual" else [results]
            found = conv.moved_bytes(shape, 3, output)
            assert found == moved(o.input, o.weight, *read)


def tiny() -> nn.Sequential:
    conv = partial(bnn.BinaryConv2d, kernel_size=3, padding=1)
    return nn.Sequential(
        conv(3, 16, input_quantizer=None),
        nn.BatchNorm2d(16),
        conv(16, 40),
        nn.BatchNorm2d(40),
        nn.Flatten(),
        bnn.BinaryLinear(40 * 8 * 8, 10),
        nn.BatchNorm1d(10),
    )


def test_models_on_a_gpu(cpu, tmp_path, monkeypatch):
    import bench_models
    from gpu import models

    monkeypatch.setattr(models, "MODELS", {"tiny": (tiny, (3, 8, 8))})
    document = measured(bench_models.main, tmp_path / "models.json", "--batches", "11", "3", "1")
    assert document["complete"] and not document["missing"] and not document["wrong"]
    for batch in (11, 3, 1):
        assert names(document["rows"], f"{batch}x3x8x8") == [
            *((f"bnn_ext {how}", "float32") for how in ("CUDA graph", "CUDA graph, TF32")),
            *((f"bnn_ext {how}", "float32") for how in ("torch.compile", "eager")),
            *(
                (f"torch fp16 NHWC {how}", "float16")
                for how in ("CUDA graph", "torch.compile", "eager")
            ),
        ]


def test_what_memory_bounds_on_a_gpu(cpu, tmp_path, monkeypatch):
    from gpu import stream

    monkeypatch.setattr(stream, "MAPS", (3, 4, 6, 40))
    monkeypatch.setattr(stream, "FEATURES", 70)
    document = measured(stream.main, tmp_path / "stream.json")
    assert document["complete"] and not document["wrong"] and not document["missing"]
    ours, copies = document["rows"][::2], document["rows"][1::2]
    maps = "3x4x6x40"
    assert [(row["what"], row["shape"], row["output_dtype"]) for row in ours] == [
        ("pack_float32", maps, "bits"),
        ("pack_float16", maps, "bits"),
        ("unpack_float16", maps, "float16"),
        ("max_pool2d_2x2", maps, "bits"),
        ("binary_weight_linear", "1x70 -> 70", "float16"),
    ]
    values, bits = 3 * 4 * 6 * 40, 4 * 3 * 4 * 6 * 2
    assert [row["bytes"] for row in ours] == [
        4 * values + bits,
        2 * values + bits,
        bits + 2 * values,
        bits + bits // 4,
        4 * 70 * 3 + 2 * 70 + 2 * 70,
    ]
    for row, copied in zip(ours, copies, strict=True):
        assert (copied["impl"], copied["bytes"]) == ("torch copy_", row["bytes"])
        assert row["tera_ops_per_s"] is None


@pytest.mark.parametrize("name", ["pack", "unpack", "max_pool2d", "binary_weight_linear"])
def test_operators_that_memory_bounds_are_checked(cpu, monkeypatch, name):
    from gpu import stream

    right = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **kwargs: 1 - right(*args, **kwargs))
    monkeypatch.setattr(stream, "MAPS", (3, 4, 6, 40))
    monkeypatch.setattr(stream, "FEATURES", 70)
    for kernel in stream.kernels():
        if kernel.what.startswith(name):
            with pytest.raises(AssertionError, match="wrong"):
                kernel.candidates()[0].prepare()


def test_a_network_is_wrong_if_every_answer_is(cpu, monkeypatch):
    from gpu import models

    network = models.Network(tiny(), (3, 8, 8))
    problem = models.Problem(network, batch=3)
    spoiled = []

    def run() -> torch.Tensor:  # as a rounding that moves bits in all images but one
        answers = network.packed(problem.images).clone()
        spoiled.append(len(answers))
        answers[1 if sum(spoiled) <= 3 else 0 :] += 1
        return answers

    assert problem._checked(run) is run
    assert len(spoiled) == 3  # 8 examples, 3 at a time
    with pytest.raises(AssertionError, match="every answer is wrong"):
        problem._checked(run)


@pytest.mark.parametrize("name, output", [("linear", "int32"), ("linear_bits", "bits")])
def test_wrong_results_are_noted_and_not_timed(cpu, tmp_path, monkeypatch, name, output):
    import bench_gemm
    from gpu import gemm

    right = getattr(ops, name)

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = right(*args, **kwargs)
        result[-1, -1] ^= 1
        return result

    monkeypatch.setattr(ops, name, wrong)
    monkeypatch.setattr(gemm, "SHAPES", {"gemm": [bench_gemm.Shape(200, 64, 320)], "gemv": []})
    path = tmp_path / "gemm.json"
    with pytest.raises(SystemExit, match="wrong results"):
        measured(bench_gemm.main, path)
    document = json.loads(path.read_text())
    reason = {"1 of the 8,192 compared results are wrong"}  # of 64 rows and 128 channels
    if output == "bits":
        reason = {"1 of the 256 compared results are wrong"}
    assert {w["reason"] for w in document["wrong"] if "compared" in w["reason"]} == reason
    timed = {row["output_dtype"] for row in document["rows"] if "bnn_ext" in row["impl"]}
    assert timed == {"bits", "float16", "int32"} - {output}


def test_failures_are_noted_and_results_are_kept(cpu, tmp_path, monkeypatch, capsys):
    import bench_gemm
    from gpu import gemm

    path = tmp_path / "gemm.json"
    shapes = [bench_gemm.Shape(20, 64, size) for size in (8, 16, 24)]
    monkeypatch.setattr(gemm, "SHAPES", {"gemm": shapes, "gemv": []})
    Problem, seen = gemm.Problem, []

    def problem(shape: Any) -> Any:
        if path.exists():
            seen.append(json.loads(path.read_text()))
        if shape is shapes[1]:
            raise torch.OutOfMemoryError("no place\nfor that")
        return Problem(shape)

    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gemm, "Problem", problem)
    monkeypatch.setattr(torch, "_int_mm", no_memory)
    with pytest.raises(SystemExit, match="1 wrong results or failures"):
        measured(bench_gemm.main, path)
    assert [len(document["rows"]) for document in seen] == [11, 11]  # after each of the first two
    assert not any(document["complete"] for document in seen)
    document = json.loads(path.read_text())
    assert document["complete"]
    (failed,) = document["wrong"]
    assert failed == {
        "what": "gemm",
        "shape": "20x64 -> 16",
        "reason": "OutOfMemoryError: no place",
    }
    reasons = {m["reason"] for m in document["missing"] if m["impl"] == "torch int8 _int_mm"}
    assert reasons == {"OutOfMemoryError: CUDA out of memory"}
    assert len(document["rows"]) == 22


def test_what_the_time_does_not_reach_is_named(cpu, tmp_path, monkeypatch):
    import bench_conv
    from gpu import conv

    monkeypatch.setattr(conv, "SHAPES", {"vgg": [bench_conv.Shape(32, 32, 4)]})
    path = tmp_path / "conv.json"
    document = measured(bench_conv.main, path, "--batches", "1", "--seconds", "0")
    assert not document["rows"] and not document["complete"]
    assert document["not_reached"] == [{"what": "conv2d_3x3", "shape": "1x32x4x4"}]


def test_results_have_a_folder_for_each_gpu(cpu, tmp_path, monkeypatch):
    from gpu import run

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    run.Run("gemm", run.parser(None).parse_args([])).finish()
    assert (tmp_path / "h200-nvl/gemm.json").exists()


# --- roofline -------------------------------------------------------------------------------------


def test_the_roofline_page_is_what_the_script_prints(capsys):
    from gpu import roofline

    roofline.main()
    assert capsys.readouterr().out == (BENCHMARKS / "roofline.md").read_text()


def test_tiles_are_those_of_the_kernels():
    from gpu import roofline

    def numbers(file: str, pattern: str) -> list[list[int]]:
        source = (BENCHMARKS.parent / "csrc/cuda" / file).read_text()
        return [[int(number) for number in match] for match in re.findall(pattern, source)]

    wgmma = numbers("gemm_sm90.cuh", r"using \w+ = Shape<(\d+), (\d+), (\d+), (\d+),")
    shapes = [(64 * consumers, *shape) for consumers, *shape in wgmma]
    tiles = roofline.TILES["wgmma"]
    assert shapes == [(t.rows, t.columns, t.stages, t.blocks) for t in tiles]
    mma = numbers("gemm_sm80.cuh", r"using \w+ = Tile<2, 2, (\d+), (\d+)>")
    sizes = [(2 * 16 * blocks, 2 * 32 * words) for blocks, words in mma]
    assert sizes == [(tile.rows, tile.columns) for tile in roofline.TILES["mma"]]


def test_floors_of_a_product():
    from gpu import roofline

    product = next(p for p in roofline.gemms("gemm") if p.shape == "8192x8192 -> 8192")
    assert product.output == "bits"
    large = roofline.TILES["wgmma"][0]
    estimate = roofline.by_tiles(product, large, roofline.Machine())
    cycle = 1 / 1.83e9 / 132
    assert estimate.floors == pytest.approx(
        {
            "compute": 8192**3 / 32768 * cycle,
            "memory": 3 * 8192 * 8192 / 8 / 4.3e12,
            # 64 x 32 tiles, each of 128 rows and 256 columns of 1024 bytes.
            "L2": 64 * 32 * 384 * 1024 / 34 * cycle,
            # These are written once; the rows are read twice and the columns by two consumers.
            "shared": 64 * 32 * 3 * 384 * 1024 / 128 * cycle,
        }
    )
    turn = 8 * 384 * 128 / 34 + 128 * 256 / 16  # cycles; 2048 tiles need 16 of them
    assert estimate.expected == pytest.approx(2e-6 + 16 * turn / 1.83e9)
    best = roofline.by_tensor_cores(product, "wgmma", roofline.Machine())
    assert best.expected <= estimate.expected


def test_small_depths_fill_whole_slabs_and_memory_may_bound():
    from gpu import roofline

    problems = {(p.shape, p.output): p for p in roofline.convolutions(256)}
    product = problems["256x64x56x56", "residual"]
    tile = roofline.TILES["wgmma"][2]
    assert (product.rows, product.depth, product.columns) == (256 * 56 * 56, 18, 64)
    estimate = roofline.by_tiles(product, tile, roofline.Machine())
    tiles = 256 * 56 * 56 / 64
    assert estimate.floors["L2"] == pytest.approx(tiles * 128 * 128 / 34 / 1.83e9 / 132)
    assert estimate.expected == pytest.approx(2e-6 + estimate.floors["memory"])
    gemv = next(p for p in roofline.gemms("gemv") if p.shape == "8x8192 -> 8192")
    floors = roofline.by_popcounts(gemv, roofline.Machine()).floors
    assert floors["compute"] == pytest.approx(8 * 8192 * 256 / 16 / 1.83e9 / 132)


def test_the_roofline_page_takes_what_was_measured(tmp_path):
    from gpu import roofline

    def row(impl: str, milliseconds: float) -> dict:
        return {
            "what": "gemm",
            "shape": "8192x8192 -> 8192",
            "impl": impl,
            "output_dtype": "bits",
            "median_ms": milliseconds,
        }

    limits = [
        {"what": "copy", "gbytes_per_s": 4200.0},
        {"what": "BGMMA.64x128x256", "tera_ops_per_s": 13000.0},
        {"what": "BGMMA.64x256x256", "tera_ops_per_s": 14000.0},
    ]
    header = {"commit": "1234567", "date": "2026-12-01T00:00:00", "device": {"name": "NVIDIA H200"}}
    rows = [row("bnn_ext auto", 0.25), row("bnn_ext mma", 0.5)]
    (tmp_path / "ceilings.json").write_text(json.dumps({"ceilings": limits}))
    (tmp_path / "gemm.json").write_text(json.dumps({**header, "rows": rows}))
    results = roofline.Results(tmp_path)
    assert results.machine() == roofline.Machine(14e15, 4.2e12, measured=True)
    page = roofline.page(results)
    assert "`gemm.json` at commit 1234567, 2026-12-01" in page
    assert "at 14.0 POP/s (8 times int8, measured)" in page
    lines = [line.split(" | ") for line in page.splitlines() if line.endswith("% |")]
    assert [(line[2].split()[0], line[-2]) for line in lines] == [("wgmma", "250"), ("mma", "500")]
    for line, measured in zip(lines, (250, 500), strict=True):
        assert float(line[-1].rstrip("% |")) == pytest.approx(
            100 * float(line[-4]) / measured, 0.05
        )

    nothing = roofline.page(roofline.Results(tmp_path / "empty"))
    assert "**Nothing on this page is measured yet**" in nothing
    assert len(nothing.splitlines()) == len(page.splitlines())


# --- plots ----------------------------------------------------------------------------------------


def test_plots_of_a_gpu(cpu, tmp_path, monkeypatch):
    import bench_conv
    import bench_gemm
    import plot
    from gpu import conv, gemm, stream

    monkeypatch.setattr(stream, "MAPS", (3, 4, 6, 40))
    monkeypatch.setattr(stream, "FEATURES", 70)
    monkeypatch.setattr(
        gemm, "SHAPES", {"gemm": [bench_gemm.Shape(n, n, n) for n in (32, 64)], "gemv": []}
    )
    monkeypatch.setattr(conv, "SHAPES", {"vgg": [bench_conv.Shape(32, 32, 4)]})
    folder = tmp_path / "h200"
    measured(bench_gemm.main, folder / "gemm.json")
    measured(bench_conv.main, folder / "conv.json", "--batches", "2", "1")
    measured(stream.main, folder / "stream.json")
    limits = [{"what": "BGMMA.64x256x256", "tera_ops_per_s": 14000.0}]
    (folder / "ceilings.json").write_text(json.dumps({"ceilings": limits}))
    (folder / "tests.json").write_text('{"files": {}}')
    plot.main(["--results", str(tmp_path)])
    drawn = {path.stem for path in folder.glob("*.png") if path.stat().st_size > 10_000}
    assert drawn == {"gemm", "gemm_sizes", "conv_batch2", "conv_batch1", "stream"}


def test_a_plot_needs_results_of_ours(tmp_path):
    import plot

    row = {"what": "gemm", "shape": "8x8 -> 8", "impl": "torch bf16", "output_dtype": "bfloat16"}
    document = {"rows": [row], "missing": []}
    plot.draw_bars(document, "", tmp_path / "bars.png")
    plot.draw_sizes(document, [], tmp_path / "sizes.png")
    assert not list(tmp_path.iterdir())


# --- the script -----------------------------------------------------------------------------------


def run_script(tmp_path: Path, *arguments: str, python: str) -> subprocess.CompletedProcess[str]:
    write_program(tmp_path, "python3", f"#!/bin/sh\n{python}\n")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["out", "tests", "nonsense"]])
def test_the_script_rejects_what_is_no_stage(tmp_path, arguments):
    done = run_script(tmp_path, *arguments, python="exit 0")
    assert done.returncode == 2
    assert "build tests sanitize ceilings gemm conv models stream" in done.stderr
    assert ("unknown stage: nonsense" in done.stderr) == ("nonsense" in arguments)
    assert not (tmp_path / "out").exists()


def test_stages_run_alone_or_all_and_a_failed_one_does_not_stop_the_others(tmp_path):
    echo = 'echo "ran $*"'
    done = run_script(tmp_path, "out", "ceilings", "tests", python=echo)
    assert done.returncode == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["ceilings.log", "tests.log"]
    assert (out / "tests.log").read_text() == f"ran -m gpu.run_tests {out}/tests.json\n"

    done = run_script(tmp_path, "out", python=f'{echo}; [ "$2" != gpu.run_tests ]')
    assert done.returncode == 1
    assert re.findall(r"^(\w+) (done|FAILED) after", done.stdout, re.MULTILINE) == [
        ("build", "done"),
        ("tests", "FAILED"),
        ("sanitize", "done"),
        ("ceilings", "done"),
        ("gemm", "done"),
        ("conv", "done"),
        ("models", "done"),
        ("stream", "done"),
    ]
    assert "pip install" in (out / "build.log").read_text()
    written = f"ran bench_conv.py --device cuda --output {out}/conv.json\n"
    assert (out / "conv.log").read_text() == written


def test_the_build_names_a_missing_package(tmp_path):
    done = run_script(tmp_path, "out", "build", python='[ "$*" != "-c import ninja" ]')
    assert done.returncode == 1
    assert "needs the Python package ninja" in (tmp_path / "out/build.log").read_text()


def test_every_module_that_the_script_names_exists():
    names = re.findall(r"python3 -m (gpu\.\w+)", SCRIPT.read_text())
    assert len(names) == 4
    names += re.findall(r"python3 (bench_\w+)\.py --device cuda", SCRIPT.read_text())
    assert len(names) == 7
    for name in names:
        assert callable(importlib.import_module(name).main)
