"""What is in the binaries, and what setup.py says where it cannot build them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnn_ext import _extension

ROOT = Path(__file__).parent.parent
OBJECTS = ROOT / "build/objects"  # where setup.py compiles to
SOURCES = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
LIBRARIES = ["_C", "_C_cuda"] if _extension.has_cuda else ["_C"]

needs_binutils = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs GNU binutils")
needs_objects = pytest.mark.skipif(not OBJECTS.exists(), reason="bnn_ext was built elsewhere")
needs_setup_py = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs setup.py")


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- the shared objects ---------------------------------------------------------------------------


def library(name: str) -> str:
    spec = importlib.util.find_spec(f"bnn_ext.{name}")
    assert spec is not None and spec.origin is not None
    return spec.origin


@pytest.mark.parametrize("name", LIBRARIES)
def test_one_binary_for_every_python(name):
    assert library(name).endswith(".abi3.so")


@needs_binutils
@pytest.mark.parametrize("name", LIBRARIES)
def test_only_the_stable_abi_of_torch_is_used(name):
    undefined = output("nm", "--dynamic", "--undefined-only", "--demangle", library(name))
    assert "torch_call_dispatcher" in undefined  # a C function: this is torch's table of symbols
    assert re.findall(r".*\b(?:at|c10|torch)::.*", undefined) == []


@needs_binutils
@pytest.mark.parametrize("name", LIBRARIES)
def test_no_second_runtime_is_linked(name):
    """Threads are torch's; the CUDA runtime is linked statically."""
    dynamic = output("readelf", "--dynamic", "--wide", library(name))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert [lib for lib in needed if re.match(r"lib(gomp|omp|iomp5|cudart)\b", lib)] == []


def test_cuda_operators_are_built_where_they_can_be():
    nvcc = shutil.which("nvcc")
    if nvcc is None or torch.version.cuda is None or os.environ.get("BNN_EXT_CUDA") == "0":
        pytest.skip("no nvcc, no CUDA build of torch, or not wanted")
    release = re.search(r"release (\d+)", output(nvcc, "--version"))
    assert release is not None
    if release[1] != torch.version.cuda.split(".")[0]:
        pytest.skip(f"nvcc is of CUDA {release[1]}, torch of CUDA {torch.version.cuda}")
    architectures = importlib.import_module("bnn_ext._C_cuda").architectures()
    assert re.fullmatch(r"\d+[af]?(\+PTX)?(;\d+[af]?(\+PTX)?)*", architectures)


# --- the object of each source --------------------------------------------------------------------

FEATURES = {
    "popcnt": r"\tpopcnt",
    "vex": r"\t(v[a-z]|andn\b|bextr|bls|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)",
    "ymm": r"%ymm",
    "zmm": r"%zmm",
    "opmask": r"%k[0-7]",
    "vpopcnt": r"\tvpopcnt",
}
AVX512 = {"popcnt", "vex", "ymm", "zmm", "opmask"}
ALLOWED = {
    "kernels_popcnt": {"popcnt"},
    "kernels_avx2": {"popcnt", "vex", "ymm"},
    "kernels_avx512": AVX512,
    "kernels_avx512_vpopcnt": AVX512 | {"vpopcnt"},
}


def object_of(source: str) -> Path:
    return OBJECTS / Path(source).with_suffix(".o")


@needs_binutils
@needs_objects
@pytest.mark.parametrize("source", SOURCES)
def test_each_object_keeps_to_its_cpu_level(source):
    code = output("objdump", "--disassemble", "--no-show-raw-insn", object_of(source))
    assert "\tret" in code
    used = {name for name, pattern in FEATURES.items() if re.search(pattern, code)}
    assert used <= ALLOWED.get(Path(source).stem, set())


@needs_binutils
@needs_objects
@pytest.mark.parametrize("level", ALLOWED)
def test_a_level_shares_no_function_with_other_objects(level):
    """An inline function with vector code could be the copy that the linker keeps for all."""
    symbols = output("nm", "--extern-only", "--defined-only", object_of(f"csrc/cpu/{level}.cpp"))
    assert symbols and all("kKernels" in symbol for symbol in symbols.splitlines())


# --- setup.py's messages --------------------------------------------------------------------------

FAKE_TORCH = """
__version__ = {version!r}
class version:
    cuda = {cuda!r}
"""
FAKE_CPP_EXTENSION = """
import os, sys
from setuptools import Extension as CppExtension
from setuptools.command.build_ext import build_ext as BuildExtension
def get_cxx_compiler():
    return os.environ["CXX"]
def CUDAExtension(name, sources, libraries, **options):
    print("CUDA operators with", os.environ["CUDA_HOME"], file=sys.stderr)
    return CppExtension(name, sources, libraries=[*libraries, "cudart"])
"""


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_toolkit(home: Path, release: str) -> Path:
    """A folder that looks like a CUDA toolkit of this release."""
    version = f"echo Cuda compilation tools, release {release}, V{release}.88"
    dry_run = f"echo '#$ TOP={home}/bin/..' >&2"
    write_program(home / "bin/nvcc", f'[ "$1" = --dryrun ] && {dry_run} || {version}')
    (home / "include").mkdir()
    (home / "include/cuda_runtime.h").touch()
    return home


@pytest.fixture
def run_setup(tmp_path):
    """Runs setup.py with a torch that only has a version and a PATH that only has a shell."""
    (tmp_path / "programs").mkdir()
    environment = {"PATH": str(tmp_path / "programs"), "PYTHONPATH": str(tmp_path / "packages")}

    def run(command="--version", *, version="2.15.0+cu130", cuda="13.0", **variables):
        utils = tmp_path / "packages/torch/utils"
        utils.mkdir(parents=True)
        (utils / "cpp_extension.py").write_text(FAKE_CPP_EXTENSION)
        (utils.parent / "__init__.py").write_text(FAKE_TORCH.format(version=version, cuda=cuda))
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", command],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
        )

    return run


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@needs_setup_py
def test_old_torch(run_setup):
    done = run_setup(version="2.9.1")
    assert done.returncode == 1
    assert_one_line(done, "needs torch 2.10 or newer", "found 2.9.1")


@needs_setup_py
def test_no_compiler(run_setup):
    done = run_setup("build_ext", CXX="no-such-c++", BNN_EXT_CUDA="0")
    assert done.returncode == 1
    assert_one_line(done, "needs a C++ compiler", "no-such-c++", "CXX")


CUDA_PROBLEMS = {
    "cpu-torch": ({"version": "2.15.0+cpu", "cuda": None}, ["2.15.0+cpu is a CPU build"]),
    "empty-home": ({"CUDA_HOME": "{tmp}/none"}, ["include/cuda_runtime.h", "{tmp}/none"]),
    "other-major": ({"CUDA_HOME": "{tmp}/12"}, ["CUDA 13.0", "{tmp}/12", "release 12.8"]),
}


@needs_setup_py
@pytest.mark.parametrize("name", CUDA_PROBLEMS)
@pytest.mark.parametrize("forced", [False, True])
def test_cuda_operators_that_cannot_be_built(run_setup, tmp_path, name, forced):
    make_toolkit(tmp_path / "12", release="12.8")
    settings, parts = CUDA_PROBLEMS[name]
    settings = {k: v and v.format(tmp=tmp_path) for k, v in settings.items()}
    done = run_setup(**settings, **({"BNN_EXT_CUDA": "1"} if forced else {}))
    assert done.returncode == (1 if forced else 0)
    verdict = "CUDA operators cannot be built" if forced else "is built without CUDA operators"
    assert_one_line(done, verdict, *(part.format(tmp=tmp_path) for part in parts))


@needs_setup_py
def test_toolkit_behind_a_wrapper_on_path(run_setup, tmp_path):
    home = make_toolkit(tmp_path / "far/away", release="13.2")
    write_program(tmp_path / "programs/nvcc", f'exec {home}/bin/nvcc "$@"')
    done = run_setup(BNN_EXT_CUDA="1")
    assert done.returncode == 0
    assert_one_line(done, f"CUDA operators with {home}")
