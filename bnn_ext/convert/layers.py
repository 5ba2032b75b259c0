"""One binary layer on bits: whether it can be, and its packed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bnn_ext import ops, quantizers
from bnn_ext.convert.sequence import has_own_forward
from bnn_ext.convert.thresholds import Threshold
from bnn_ext.nn.binary import BinaryConv2d, BinaryLinear
from bnn_ext.nn.packed import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    PackedConv2d,
    PackedLayer,
    PackedLinear,
    RealInputConv2d,
    RealInputLinear,
    is_channels_last,
)

# The binary layers that have packed kernels.
PackableLayer = BinaryLinear | BinaryConv2d
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One integer for both axes, or one each, as two plain integers."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _conv_padding(layer: BinaryConv2d) -> tuple[int, int] | None:
    """The padding of both sides in numbers, or None where the sides differ."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # "same" resolved, too
    return (top, left) if (top, left) == (bottom, right) else None


def why_not_packed(layer: nn.Module) -> str | None:
    """Why the layer's weight cannot be kept as bits, in words; None if it can."""
    if not isinstance(layer, PackableLayer):
        return "only linear layers and 2-d convolutions have packed kernels"
    if has_own_forward(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if layer.weight.dtype not in _DTYPES:
        return f"weight is {layer.weight.dtype}; use float32, float16 or bfloat16"
    if isinstance(layer, BinaryConv2d) and _conv_padding(layer) is None:
        return 'padding="same" pads one side more than the other; choose an odd kernel size'
    try:
        layer.signs_and_scale()
    except ValueError as error:
        return str(error)
    return None


def takes_bits(layer: nn.Module) -> TypeGuard[PackableLayer]:
    """Whether the layer can run on packed input: a binary layer that takes the input's sign."""
    return (
        isinstance(layer, PackableLayer)
        and layer.input_quantizer is not None
        and quantizers.is_sign(layer.input_quantizer)
        and why_not_packed(layer) is None
    )


def takes_reals(layer: nn.Module) -> TypeGuard[PackableLayer]:
    """Whether the layer has a real input and a weight that can be kept as bits."""
    return (
        isinstance(layer, PackableLayer)
        and layer.input_quantizer is None
        and why_not_packed(layer) is None
    )


def _packed_weight(layer: PackableLayer, flattened: int | None) -> Tensor:
    """The weight's signs in the packed order of the input.

    Args:
        layer: the binary layer.
        flattened: channels of the map that was flattened in front of a linear layer. A packed map
            lies in the order height, width, channel; the weight expects channel first.
    """
    signs, _ = layer.signs_and_scale()
    if signs.dim() == 4:
        signs = signs.permute(0, 2, 3, 1)
    elif flattened is not None:
        signs = signs.unflatten(1, (flattened, -1)).transpose(1, 2).flatten(1)
    return ops.pack(signs.contiguous())


def _arguments(layer: PackableLayer) -> dict[str, object]:
    """The geometry that a packed convolution takes over."""
    if isinstance(layer, BinaryLinear):
        return {}
    return {
        "stride": pair(layer.stride),
        "padding": _conv_padding(layer),
        "dilation": pair(layer.dilation),
        "groups": int(layer.groups),
        "pad_value": int(layer.pad_value),
    }


def _end_arguments(layer: PackableLayer, threshold: Threshold | None) -> dict[str, object]:
    """The layer's end: a threshold, or scale and bias in float32."""
    if threshold is not None:
        return threshold._asdict()
    _, scale = layer.signs_and_scale()
    return {"scale": _float(scale), "bias": _float(layer.bias)}


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().clone()


def packed_layer(
    layer: PackableLayer,
    flattened: int | None,
    threshold: Threshold | None,
    channels_last: bool,
) -> PackedLinear | PackedConv2d:
    """The layer on packed input, with bits as output if there is a threshold."""
    arguments = _arguments(layer) | _end_arguments(layer, threshold)
    if threshold is None:
        arguments["dtype"] = _DTYPES[layer.weight.dtype]
    weight = _packed_weight(layer, flattened)
    if isinstance(layer, BinaryLinear):
        return PackedLinear(weight, int(layer.in_features), **arguments)  # type: ignore[arg-type]
    if threshold is None:
        arguments["channels_last"] = channels_last
    return PackedConv2d(weight, int(layer.in_channels), **arguments)  # type: ignore[arg-type]


def real_input_layer(
    layer: PackableLayer, threshold: Threshold | None, channels_last: bool
) -> RealInputLinear | RealInputConv2d:
    """The layer with a real input by our kernels, with bits as output if there is a threshold."""
    arguments = _arguments(layer) | _end_arguments(layer, threshold)
    weight = _packed_weight(layer, None)
    if isinstance(layer, BinaryLinear):
        return RealInputLinear(weight, int(layer.in_features), **arguments)  # type: ignore[arg-type]
    if threshold is None:
        arguments["channels_last"] = channels_last
    return RealInputConv2d(weight, int(layer.in_channels), **arguments)  # type: ignore[arg-type]


def binary_weight_layer(layer: PackableLayer) -> PackedLayer:
    """The layer with a real input by torch, its weight stored as bits."""
    _, scale = layer.signs_and_scale()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    dtype = _DTYPES[layer.weight.dtype]
    weight, fan_in = _packed_weight(layer, None), layer.weight.shape[1]
    if isinstance(layer, BinaryLinear):
        return BinaryWeightLinear(weight, fan_in, scale, bias, dtype)
    return BinaryWeightConv2d(
        weight,
        fan_in,
        **_arguments(layer),  # type: ignore[arg-type]
        channels_last=is_channels_last(layer.weight),
        scale=scale,
        bias=bias,
        dtype=dtype,
    )
