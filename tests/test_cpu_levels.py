"""Choosing the CPU level: in the process, and by the environment variable."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import bnn_ext
from bnn_ext import _C

ALL_LEVELS = ("generic", "popcnt", "avx2", "avx512", "avx512_vpopcnt")
CARRY_SAVE = "avx512_vpopcnt_csa"


def run_python(code: str, level: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BNN_EXT_CPU_CAPABILITY": level}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_levels_are_known_names_from_slowest_to_fastest():
    levels = _C.cpu_capabilities()
    assert levels[0] == "generic"
    others = tuple(level for level in levels if level != CARRY_SAVE)
    assert others == tuple(level for level in ALL_LEVELS if level in levels)
    assert (CARRY_SAVE in levels) == ("avx512_vpopcnt" in levels)
    assert CARRY_SAVE not in levels[:-2]  # which of the last two is faster depends on the CPU


def test_the_test_hook_switches_the_level(level):
    assert bnn_ext.cpu_capability() == level


def test_an_unknown_level_is_refused():
    before = _C.cpu_capability()
    with pytest.raises(ValueError, match=r"name must be a level .*generic.*found 'sse9'"):
        _C.set_cpu_capability("sse9")
    with pytest.raises(TypeError):
        _C.set_cpu_capability(3)
    assert _C.cpu_capability() == before


def test_the_register_peak_counts_its_work(level):
    once = _C.register_peak(1)
    assert once > 0
    assert once % (16 * 32) == 0  # vectors of 16 words of 32 multiply-accumulates
    assert _C.register_peak(1000) == 1000 * once


@pytest.mark.parametrize("name", _C.cpu_capabilities())
def test_the_environment_variable_names_the_level(name):
    done = run_python("import bnn_ext; print(bnn_ext.cpu_capability())", name)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_an_empty_environment_variable_means_the_best_level():
    done = run_python("import bnn_ext; print(bnn_ext.cpu_capability())", "")
    assert (done.returncode, done.stdout.strip()) == (0, _C.cpu_capabilities()[-1]), done.stderr


def test_a_wrong_environment_variable_fails_at_import():
    done = run_python("import bnn_ext", "sse9")
    assert done.returncode != 0
    message = "ValueError: BNN_EXT_CPU_CAPABILITY must be a level that this CPU runs (generic"
    assert message in done.stderr
    assert "found 'sse9'" in done.stderr
