"""Version 1 of the model file, which is read and no longer written.

    {"version": 1,
     "nodes": [{"name": "3", "kind": "PackedConv2d", "inputs": ["0"], "attributes": {...},
                "channels_last": ["weight"]}, ...],
     "report": {...},
     "sha256": "..."}

Every node takes one value, that of the node named or the network's input "", and the last one gives
the output. Layers that were not converted are modules of torch.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from bnn_ext.convert.network import Node
from bnn_ext.nn import binary, packed, real_inputs

INPUT = ""  # the name of the network's own input, which no layer can have

# Nodes, names of the inputs, structure of the outputs, and whether sums are rounded otherwise.
Contents = tuple[list[Node], tuple[str, ...], Any, bool]

_PACKED: dict[str, type[packed.PackedLayer]] = {
    kind.__name__: kind
    for kind in (
        real_inputs.BinaryWeightConv2d,
        real_inputs.BinaryWeightLinear,
        packed.Pack,
        packed.PackedConv2d,
        packed.PackedFlatten,
        packed.PackedLinear,
        packed.PackedMaxPool2d,
        real_inputs.RealInputConv2d,
        real_inputs.RealInputLinear,
    )
}

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias"
_BINARY_CONV = _CONV + " pad_value input_quantizer weight_quantizer"
_BATCH_NORM = "num_features eps momentum affine track_running_stats bias"
_POOL = "kernel_size stride padding dilation return_indices ceil_mode"
# Layers that a network left as they were, with the arguments of their constructors.
_TORCH: dict[str, tuple[type[nn.Module], str]] = {
    kind.__name__: (kind, arguments)
    for kind, arguments in (
        (binary.BinaryLinear, "in_features out_features bias input_quantizer weight_quantizer"),
        (binary.BinaryConv1d, _BINARY_CONV),
        (binary.BinaryConv2d, _BINARY_CONV),
        (binary.BinaryConv3d, _BINARY_CONV),
        (nn.Linear, "in_features out_features bias"),
        (nn.Conv1d, _CONV + " padding_mode"),
        (nn.Conv2d, _CONV + " padding_mode"),
        (nn.Conv3d, _CONV + " padding_mode"),
        (nn.BatchNorm1d, _BATCH_NORM),
        (nn.BatchNorm2d, _BATCH_NORM),
        (nn.BatchNorm3d, _BATCH_NORM),
        (nn.LayerNorm, "normalized_shape eps elementwise_affine bias"),
        (nn.MaxPool1d, _POOL),
        (nn.MaxPool2d, _POOL),
        (nn.MaxPool3d, _POOL),
        (nn.AvgPool1d, "kernel_size stride padding ceil_mode count_include_pad"),
        (nn.AvgPool2d, "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
        (nn.AdaptiveAvgPool1d, "output_size"),
        (nn.AdaptiveAvgPool2d, "output_size"),
        (nn.AdaptiveMaxPool2d, "output_size return_indices"),
        (nn.Flatten, "start_dim end_dim"),
        (nn.Unflatten, "dim unflattened_size"),
        (nn.ZeroPad2d, "padding"),
        (nn.ReLU, ""),
        (nn.ReLU6, ""),
        (nn.LeakyReLU, "negative_slope"),
        (nn.PReLU, "num_parameters"),
        (nn.Hardtanh, "min_val max_val"),
        (nn.Hardsigmoid, ""),
        (nn.Hardswish, ""),
        (nn.Tanh, ""),
        (nn.Sigmoid, ""),
        (nn.GELU, "approximate"),
        (nn.SiLU, ""),
        (nn.Softmax, "dim"),
        (nn.LogSoftmax, "dim"),
    )
}


def text(header: dict[str, Any]) -> str:
    """The header as it was spelled."""
    return json.dumps(header)


def read(header: dict[str, Any], owned: dict[str, dict[str, Tensor]]) -> Contents:
    """What a header describes; takes the tensors out of `owned`, which has them by node."""
    nodes = [_node(description, owned) for description in header["nodes"]]
    real = (real_inputs.RealInputConv2d, real_inputs.RealInputLinear)
    rounds = any(isinstance(node.module, real) for node in nodes)
    return nodes, (INPUT,), nodes[-1].name if nodes else INPUT, rounds


def _node(description: dict[str, Any], owned: dict[str, dict[str, Tensor]]) -> Node:
    name, inputs = description["name"], description["inputs"]
    if not isinstance(name, str):
        raise ValueError(f"the name of a node must be a string, found {name!r}")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise ValueError(f"node {name} must take one input, found {inputs}")
    tensors = owned.pop(name, {})
    for key in description["channels_last"]:
        tensors[key] = tensors[key].clone(memory_format=torch.channels_last)
    try:
        module = _build(description["kind"], description["attributes"], tensors)
    except Exception as error:
        raise ValueError(f"node {name}: {error}") from None
    return Node(name, module, tuple(inputs), (name,))


def _build(kind: str, attributes: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    attributes = {
        key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()
    }
    if kind not in _PACKED and kind not in _TORCH:
        raise ValueError(f"kind must be one of {', '.join([*_PACKED, *_TORCH])}, found {kind!r}")
    known = _PACKED[kind].attribute_names if kind in _PACKED else _TORCH[kind][1].split()
    if set(attributes) != set(known):
        raise ValueError(f"attributes must be {list(known)}, found {list(attributes)}")
    if kind in _PACKED:
        return _PACKED[kind](**attributes, **tensors)

    has_bias = attributes.pop("bias", True)
    with torch.device("meta"):  # allocates nothing, whatever sizes the file claims
        module = _TORCH[kind][0](**attributes)
    if not has_bias:
        module.register_parameter(
            "bias", None
        )  # not every layer has the argument in every version of torch
    for key, expected in module.state_dict().items():
        if key in tensors and tensors[key].is_floating_point() != expected.is_floating_point():
            raise ValueError(f"{key} must be like {expected.dtype}, found {tensors[key].dtype}")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module
