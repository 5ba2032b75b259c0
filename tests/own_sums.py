"""Float models that sum real inputs as our kernels do, so that nothing about them is inexact."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import ops
from bnn_ext.nn.packed import is_channels_last


def _takes_reals(layer: nn.Module) -> bool:
    """Whether it has a real input and a weight that can be kept as bits."""
    if not isinstance(layer, (bnn.BinaryLinear, bnn.BinaryConv2d)) or layer.input_quantizer:
        return False
    if isinstance(layer, bnn.BinaryConv2d):
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        if (left, top) != (right, bottom):
            return False
    try:
        layer.signs_and_scale()
    except ValueError:
        return False
    return type(layer) in (bnn.BinaryLinear, bnn.BinaryConv2d)


def _sums(layer: bnn.BinaryLinear | bnn.BinaryConv2d, x: Tensor) -> Tensor:
    """float32, in the memory format of torch's."""
    signs, _ = layer.signs_and_scale()
    if isinstance(layer, bnn.BinaryLinear):
        return ops.binary_weight_linear(x.float(), ops.pack(signs), layer.in_features)
    left, _, top, _ = layer._reversed_padding_repeated_twice
    sums = ops.binary_weight_conv2d(
        x.float(),
        ops.pack(signs.permute(0, 2, 3, 1).contiguous()),
        layer.in_channels,
        layer.stride,
        (top, left),
        layer.dilation,
        layer.groups,
        layer.pad_value,
    )
    like_torch = is_channels_last(type(layer).forward(layer, x))
    return sums if like_torch else sums.clone(memory_format=torch.contiguous_format)


def _forward(layer: bnn.BinaryLinear | bnn.BinaryConv2d, x: Tensor) -> Tensor:
    _, scale = layer.signs_and_scale()
    return layer.finish(_sums(layer, x).to(x.dtype), scale)


def with_own_sums(model: nn.Module) -> nn.Module:
    """A copy in which layers with real inputs and binary weights run the operators of `ops`.

    Those are compared with exact sums in test_ops_real.py. What the converter makes of such layers
    is compared with this copy, bit for bit; for comparison only, since it cannot be converted.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if _takes_reals(module):
            module.forward = partial(_forward, module)
    return model
