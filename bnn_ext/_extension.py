"""Loads the compiled operators: `_C` always, `_C_cuda` only under a CUDA build of torch."""

from __future__ import annotations

import importlib

import torch

from bnn_ext import _C

has_cuda = False
if torch.version.cuda is not None:
    try:
        importlib.import_module("bnn_ext._C_cuda")
        has_cuda = True
    except ModuleNotFoundError:
        pass  # built without nvcc: the CPU operators work all the same


def cpu_capability() -> str:
    """The CPU level in use: generic, popcnt, avx2, avx512, avx512_vpopcnt or avx512_vpopcnt_csa.

    It is the best one that this CPU runs, or the one that the environment variable
    `BNN_EXT_CPU_CAPABILITY` named when `bnn_ext` was imported.
    """
    return _C.cpu_capability()
