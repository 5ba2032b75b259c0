"""Parameters, bytes and multiply-accumulates of a model, by bit width."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert.network import PackedNetwork
from bnn_ext.convert.tables import format_table
from bnn_ext.convert.verify import eval_mode
from bnn_ext.nn.binary import BinaryConv1d, BinaryConv2d, BinaryConv3d, BinaryLinear
from bnn_ext.nn.fused import FusedConv2d, FusedLinear
from bnn_ext.nn.packed import PackedConv2d, PackedLayer, PackedLinear
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.real_inputs import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    RealInputConv2d,
    RealInputLinear,
)
from bnn_ext.nn.torch_calls import TorchCall

BINARY_LAYERS = (BinaryLinear, BinaryConv1d, BinaryConv2d, BinaryConv3d)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BINARY_PRODUCTS = (PackedLinear, PackedConv2d, FusedLinear, FusedConv2d)
_PACKED_LINEAR = (PackedLinear, FusedLinear, RealInputLinear)
_PACKED_CONV2D = (PackedConv2d, FusedConv2d, RealInputConv2d)
_PACKED_PRODUCTS = (*_PACKED_LINEAR, *_PACKED_CONV2D, BinaryWeightLinear, BinaryWeightConv2d)
_NO_PARAMETERS = ("weight", "flip", "minimum", "index")  # bits and channels of packed layers
_CALLED_PRODUCTS = ("convolution.default", "linear.default")


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of parameters and persistent buffers as they are."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def weights_per_output(module: nn.Module) -> int:
    """Weights that meet in one output number; 0 for a layer without products."""
    if isinstance(module, _PACKED_LINEAR):
        return module.in_features
    if isinstance(module, _PACKED_CONV2D):
        return module.in_channels // module.groups * module.weight[0, ..., 0].numel()
    if isinstance(module, BinaryWeightConv2d):
        return module.fan_in * module.weight[0, ..., 0].numel()
    if isinstance(module, BinaryWeightLinear):
        return module.fan_in
    weight = _real_weight(module)
    return 0 if weight is None else weight[0].numel()


def out_channels(module: nn.Module) -> int:
    """Rows of the weight; 0 for a layer without products."""
    weight = module.weight if isinstance(module, _PACKED_PRODUCTS) else _real_weight(module)
    return 0 if weight is None else weight.shape[0]


def _real_weight(module: nn.Module) -> Tensor | None:
    """The weight of a linear layer or convolution of torch."""
    if isinstance(module, (*_PRODUCTS, PointwiseConv2d)):
        return module.weight
    if isinstance(module, TorchCall) and module.operator in _CALLED_PRODUCTS:
        template = module.arguments[1]
        return module.tensors().get(template.get("tensor"))
    return None


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


def summary(model: nn.Module, example_inputs: Tensor | Sequence[Tensor] | None = None) -> Summary:
    """Counts parameters, bytes and multiply-accumulates by bit width.

    Multiply-accumulates are those of the layers of `torch.nn` and `bnn_ext.nn` that run, and of all
    calls in a converted network; what other layers call by `torch.nn.functional` is not seen.

    Args:
        model: any model, before or after `convert`; runs in eval mode and is left as it was.
        example_inputs: a batch to run, or a sequence of them for a model with several inputs, for
            the multiply-accumulates of one sample; without it they are unknown.
    """
    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if not list(module.children()) or _own_bytes(module)
    ]
    positions: dict[nn.Module, int] = {}  # outputs per sample and channel

    def note(module: nn.Module, _: Any, output: Any) -> None:
        values = output[0] if isinstance(output, tuple) else output  # of floats and bits the floats
        count = math.prod(values.shape[1:]) // _out_words(module, values)
        positions[module] = positions.get(module, 0) + count

    if example_inputs is not None:
        inputs = [example_inputs] if isinstance(example_inputs, Tensor) else example_inputs
        hooks = [m.register_forward_hook(note) for _, m in leaves if weights_per_output(m)]
        try:
            with torch.no_grad(), eval_mode(model), _node_by_node(model):
                model(*(x.clone() for x in inputs))
        finally:
            for hook in hooks:
                hook.remove()
    ran = example_inputs is not None
    names = _step_names(model)
    return Summary(
        [
            _layer(names.get(name, name), module, positions.get(module, 0), ran)
            for name, module in leaves
        ]
    )


def _step_names(model: nn.Module) -> dict[str, str]:
    """The steps of converted networks by the names of their nodes, which say what they do."""
    return {
        f"{path}.steps.{i}".lstrip("."): f"{path}.{node.name}".lstrip(".")
        for path, network in model.named_modules()
        if isinstance(network, PackedNetwork)
        for i, node in enumerate(network.nodes)
    }


@contextmanager
def _node_by_node(model: nn.Module) -> Iterator[None]:
    """Converted networks call their steps one by one, which they otherwise run several at once."""
    networks = [module for module in model.modules() if isinstance(module, PackedNetwork)]

    def forward(network: PackedNetwork, *inputs: Tensor) -> Any:
        values = dict(zip(network.inputs, inputs, strict=True)) | dict(network.values(*inputs))
        return pytree.tree_map(values.__getitem__, network.structure)

    for network in networks:
        network.forward = functools.partial(forward, network)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for network in networks:
            del network.forward


def _own_bytes(module: nn.Module) -> int:
    """Bytes of the tensors that belong to the module itself and not to its children."""
    return tensor_bytes(module) - sum(tensor_bytes(child) for child in module.children())


def _out_words(module: nn.Module, output: Tensor) -> int:
    """Size of the output's channel dimension, packed or not."""
    if isinstance(module, _PACKED_PRODUCTS) and output.dtype == torch.int32:
        return output.shape[-1]
    return out_channels(module)


def _layer(name: str, module: nn.Module, positions: int, ran: bool) -> LayerSummary:
    weights = out_channels(module) * weights_per_output(module)
    size = _own_bytes(module)
    binary_weight = binary_input = False
    if isinstance(module, PackedLayer):
        binary_weight = isinstance(module, _PACKED_PRODUCTS)
        binary_input = isinstance(module, _BINARY_PRODUCTS)
        real = [t for key, t in module.tensors().items() if key not in _NO_PARAMETERS]
        if isinstance(module, PointwiseConv2d):
            real.append(module.weight)
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
        module.operator if isinstance(module, TorchCall) else type(module).__name__,
        binary_parameters=weights if binary_weight else 0,
        real_parameters=sum(tensor.numel() for tensor in real),
        bytes=size,
        binary_macs=products if in_bits else 0,
        real_macs=0 if in_bits else products,
    )
