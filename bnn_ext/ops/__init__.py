"""The packed operators: one wrapper each, with its documentation, argument errors and fake kernel.

A packed tensor is int32, 32 bits a word, least significant bit first, along the last dimension:
features of a matrix, channels of an NHWC map. Bit 1 is +1, bit 0 is -1; the tail bits of the last
word are 0. `[..., C]` real values become `[..., ceil(C / 32)]` words.

Each operator computes exactly what the function of the same name in `bnn_ext.reference` computes.
Wrong arguments raise `TypeError` (type or dtype) or `ValueError` (shape, value, device), naming
the argument, what was found and what was expected.
"""

from bnn_ext.ops.binary_weight import (
    binary_weight_conv2d,
    binary_weight_conv2d_bits,
    binary_weight_linear,
    binary_weight_linear_bits,
)
from bnn_ext.ops.channels import select_channels
from bnn_ext.ops.convolution import conv2d, conv2d_bits, conv2d_float, conv2d_fused
from bnn_ext.ops.epilogue import STEPS as STEPS
from bnn_ext.ops.epilogue import Step as Step
from bnn_ext.ops.matrix_product import linear, linear_bits, linear_float, linear_fused
from bnn_ext.ops.packing import TILE_CHANNELS as TILE_CHANNELS
from bnn_ext.ops.packing import flatten, pack, tile_weight, unpack
from bnn_ext.ops.pooling import avg_pool2d, global_avg_pool2d, max_pool2d, max_pool2d_float
from bnn_ext.ops.real_values import elementwise
from bnn_ext.ops.sequence import Call as Call
from bnn_ext.ops.sequence import Sequence as Sequence

__all__ = [
    "pack",
    "unpack",
    "flatten",
    "select_channels",
    "tile_weight",
    "linear",
    "linear_float",
    "linear_bits",
    "linear_fused",
    "conv2d",
    "conv2d_float",
    "conv2d_bits",
    "conv2d_fused",
    "binary_weight_linear",
    "binary_weight_linear_bits",
    "binary_weight_conv2d",
    "binary_weight_conv2d_bits",
    "elementwise",
    "max_pool2d",
    "max_pool2d_float",
    "avg_pool2d",
    "global_avg_pool2d",
]
