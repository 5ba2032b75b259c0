"""Layers of binarized networks; usually imported as `from bnn_ext import nn as bnn`."""

from bnn_ext.nn.activations import LearnableBias, LearnableScale, RPReLU, RSign
from bnn_ext.nn.binarize import binarize, first_and_last
from bnn_ext.nn.binary import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConv3d,
    BinaryLinear,
    binary_parameters,
    clip_weights,
    set_weight_quantizer,
)
from bnn_ext.nn.on_bits import packed_evaluation
from bnn_ext.nn.residual import Residual

__all__ = [
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConv3d",
    "BinaryLinear",
    "LearnableBias",
    "LearnableScale",
    "RPReLU",
    "RSign",
    "Residual",
    "binarize",
    "binary_parameters",
    "clip_weights",
    "first_and_last",
    "packed_evaluation",
    "set_weight_quantizer",
]
