"""Parameters, bytes and multiply-accumulates of a model, by bit width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn_ext.convert.tables import format_table
from bnn_ext.convert.verify import eval_mode
from bnn_ext.nn.binary import BinaryConv1d, BinaryConv2d, BinaryConv3d, BinaryLinear
from bnn_ext.nn.packed import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    PackedConv2d,
    PackedLayer,
    PackedLinear,
    RealInputConv2d,
    RealInputLinear,
)

BINARY_LAYERS = (BinaryLinear, BinaryConv1d, BinaryConv2d, BinaryConv3d)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PACKED_LINEAR = (PackedLinear, RealInputLinear)
_PACKED_CONV2D = (PackedConv2d, RealInputConv2d)
_PACKED_PRODUCTS = (*_PACKED_LINEAR, *_PACKED_CONV2D, BinaryWeightLinear, BinaryWeightConv2d)
_PACKED_TENSORS = ("weight", "flip", "minimum")  # bits, not parameters


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of parameters and persistent buffers as they are."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def weights_per_output(module: nn.Module) -> int:
    """Weights that meet in one output number; 0 for a layer without products."""
    if isinstance(module, _PRODUCTS):
        return module.weight[0].numel()
    if isinstance(module, _PACKED_LINEAR):
        return module.in_features
    if isinstance(module, _PACKED_CONV2D):
        return module.in_channels // module.groups * module.weight[0, ..., 0].numel()
    if isinstance(module, BinaryWeightConv2d):
        return module.fan_in * module.weight[0, ..., 0].numel()
    if isinstance(module, BinaryWeightLinear):
        return module.fan_in
    return 0


def out_channels(module: nn.Module) -> int:
    """Rows of the weight; 0 for a layer without products."""
    if isinstance(module, (*_PRODUCTS, *_PACKED_PRODUCTS)):
        return module.weight.shape[0]
    return 0


@dataclass
class LayerSummary:
    """One layer: numbers of parameters and multiply-accumulates, in 1 bit and in more.

    A multiply-accumulate counts as binary if both factors are. `bytes` is what the layer takes
    with every binary weight in one bit.
    """

    name: str
    kind: str
    binary_parameters: int
    real_parameters: int
    bytes: int
    binary_macs: int | None
    real_macs: int | None


@dataclass
class Summary:
    """Totals and layers; `print` it."""

    layers: list[LayerSummary]

    @property
    def binary_parameters(self) -> int:
        return sum(layer.binary_parameters for layer in self.layers)

    @property
    def real_parameters(self) -> int:
        return sum(layer.real_parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def binary_macs(self) -> int | None:
        return _sum([layer.binary_macs for layer in self.layers])

    @property
    def real_macs(self) -> int | None:
        return _sum([layer.real_macs for layer in self.layers])

    def __str__(self) -> str:
        header = (
            "layer",
            "kind",
            "1-bit params",
            "real params",
            "bytes",
            "1-bit MACs",
            "real MACs",
        )
        total = LayerSummary(
            "total",
            "",
            self.binary_parameters,
            self.real_parameters,
            self.bytes,
            self.binary_macs,
            self.real_macs,
        )
        rows = []
        for layer in [*self.layers, total]:
            numbers = (
                layer.binary_parameters,
                layer.real_parameters,
                layer.bytes,
                layer.binary_macs,
                layer.real_macs,
            )
            cells = ("?" if number is None else f"{number:,}" for number in numbers)
            rows.append((layer.name or "(model)", layer.kind, *cells))
        return format_table(header, rows, right=(2, 3, 4, 5, 6))


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def summary(model: nn.Module, example_inputs: Tensor | None = None) -> Summary:
    """Counts parameters, bytes and multiply-accumulates by bit width.

    Args:
        model: any model, before or after `convert`; runs in eval mode and is left as it was.
        example_inputs: a batch to run, for the multiply-accumulates of one sample; without it they
            are unknown.
    """
    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if not list(module.children()) or _own_bytes(module)
    ]
    positions: dict[nn.Module, int] = {}  # outputs per sample and channel

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        count = math.prod(output.shape[1:]) // _out_words(module, output)
        positions[module] = positions.get(module, 0) + count

    if example_inputs is not None:
        hooks = [m.register_forward_hook(note) for _, m in leaves if weights_per_output(m)]
        try:
            with torch.no_grad(), eval_mode(model):
                model(example_inputs.clone())
        finally:
            for hook in hooks:
                hook.remove()
    ran = example_inputs is not None
    return Summary([_layer(name, module, positions.get(module, 0), ran) for name, module in leaves])


def _own_bytes(module: nn.Module) -> int:
    """Bytes of the tensors that belong to the module itself and not to its children."""
    return tensor_bytes(module) - sum(tensor_bytes(child) for child in module.children())


def _out_words(module: nn.Module, output: Tensor) -> int:
    """Size of the output's channel dimension, packed or not."""
    if isinstance(module, _PACKED_LINEAR + _PACKED_CONV2D) and output.dtype == torch.int32:
        return output.shape[-1]
    return out_channels(module)


def _layer(name: str, module: nn.Module, positions: int, ran: bool) -> LayerSummary:
    weights = out_channels(module) * weights_per_output(module)
    size = _own_bytes(module)
    binary_weight = binary_input = False
    if isinstance(module, PackedLayer):
        binary_weight = isinstance(module, _PACKED_PRODUCTS)
        binary_input = isinstance(module, (PackedLinear, PackedConv2d))
        real = [t for key, t in module.tensors().items() if key not in _PACKED_TENSORS]
    elif isinstance(module, BINARY_LAYERS):
        binary_weight = module.weight_quantizer is not None
        binary_input = module.input_quantizer is not None
        real = [p for p in module.parameters() if not (binary_weight and p is module.weight)]
        if binary_weight:
            size += (weights + 7) // 8 - weights * module.weight.element_size()
    else:
        real = list(module.parameters(recurse=False))
    products = positions * weights if ran or not weights else None
    in_bits = binary_weight and binary_input
    return LayerSummary(
        name,
        type(module).__name__,
        binary_parameters=weights if binary_weight else 0,
        real_parameters=sum(tensor.numel() for tensor in real),
        bytes=size,
        binary_macs=products if in_bits else 0,
        real_macs=0 if in_bits else products,
    )
