"""What runs on a machine with a GPU (benchmarks/run_on_gpu.sh), as far as it runs without one."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from machine_code import disassemble, loops

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
    assert "build tests ceilings sanitize" in done.stderr
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
        ("ceilings", "done"),
        ("sanitize", "done"),
    ]
    assert "pip install" in (out / "build.log").read_text()


def test_the_build_names_a_missing_package(tmp_path):
    done = run_script(tmp_path, "out", "build", python='[ "$*" != "-c import ninja" ]')
    assert done.returncode == 1
    assert "needs the Python package ninja" in (tmp_path / "out/build.log").read_text()


def test_every_module_that_the_script_names_exists():
    names = re.findall(r"python3 -m (gpu\.\w+)", SCRIPT.read_text())
    assert len(names) == 3
    for name in names:
        assert callable(importlib.import_module(name).main)
