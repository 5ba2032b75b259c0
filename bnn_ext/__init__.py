"""Binarized neural networks in PyTorch: train them, convert them, run them on packed bits.

from bnn_ext import nn as bnn              # layers to train with
fast = bnn_ext.convert(model.eval(), x)    # the same network on XNOR and popcount
bnn_ext.save(fast, "model.bnn")
"""

from importlib.metadata import version as _version

from bnn_ext import nn, ops, quantizers
from bnn_ext._extension import cpu_capability
from bnn_ext.convert import convert, load, save, summary, to_float, verify

__version__ = _version("bnn_ext")

__all__ = [
    "convert",
    "cpu_capability",
    "load",
    "nn",
    "ops",
    "quantizers",
    "save",
    "summary",
    "to_float",
    "verify",
]
