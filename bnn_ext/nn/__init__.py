"""Layers of binarized networks; usually imported as `from bnn_ext import nn as bnn`."""

from bnn_ext.nn.binary import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConv3d,
    BinaryLinear,
    clip_weights,
)

__all__ = [
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConv3d",
    "BinaryLinear",
    "clip_weights",
]
