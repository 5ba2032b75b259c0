"""What the process keeps of freed memory. Each case has a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MIB_KEPT = """
from pathlib import Path
import resource
import torch
from bnn_ext.training import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

{call}
before = resident()
for _ in range(8):
    torch.ones(1 << 26)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what it sets")
def test_keep_freed():
    def kept(call: str) -> int:
        command = [sys.executable, "-c", MIB_KEPT.format(call=call)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert kept("") < 32
    # The eight share one tensor's memory, or two where a small block came to lie in the first's.
    assert 256 <= kept("memory.keep_freed()") < 2 * 256 + 32
