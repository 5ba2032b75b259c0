"""Model files: safetensors, with the network's nodes as JSON in the header's metadata.

    {"version": 1,
     "nodes": [{"name": "3", "kind": "PackedConv2d", "inputs": ["0"], "attributes": {...}}, ...],
     "report": {...},
     "sha256": "..."}             # of everything else in the file

The tensor `weight` of node `3` is called `3.weight`. Weights are stored as the ops define them,
`[out, ..., words]`, so one file runs on every CPU level and device. A file is data only: kinds come
from the fixed tables below, and nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bnn_ext import quantizers
from bnn_ext.convert.network import INPUT, Node, PackedNetwork
from bnn_ext.convert.report import Report
from bnn_ext.nn import binary, packed
from bnn_ext.nn.packed import is_channels_last

VERSION = 1
_KEY = "bnn_ext"  # of our JSON in the safetensors metadata

_PACKED: dict[str, type[packed.PackedLayer]] = {
    kind.__name__: kind
    for kind in (
        packed.BinaryWeightConv2d,
        packed.BinaryWeightLinear,
        packed.Pack,
        packed.PackedConv2d,
        packed.PackedFlatten,
        packed.PackedLinear,
        packed.PackedMaxPool2d,
        packed.RealInputConv2d,
        packed.RealInputLinear,
    )
}

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias"
_BINARY_CONV = _CONV + " pad_value input_quantizer weight_quantizer"
_BATCH_NORM = "num_features eps momentum affine track_running_stats bias"
_POOL = "kernel_size stride padding dilation return_indices ceil_mode"
# Layers that a network may leave as they were, with the constructor's arguments to keep.
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


# --- saving ---------------------------------------------------------------------------------------


def save(network: PackedNetwork, path: str | os.PathLike[str]) -> None:
    """Writes a converted network to one file.

    The file appears under its name only when it is complete; whatever was there before stays
    until then.

    Args:
        network: what `convert` returned.
        path: usually ending in `.bnn`.

    Raises:
        TypeError: `network` is not a `PackedNetwork`.
        ValueError: it holds a layer that the file format does not know.
    """
    if not isinstance(network, PackedNetwork):
        raise TypeError(
            f"network must be what bnn_ext.convert returns, found {type(network).__name__}"
        )
    nodes, tensors = [], {}
    for node, module in zip(network.nodes, network.steps, strict=True):
        kind, attributes, own = _describe(node.name, module)
        nodes.append(
            {
                "name": node.name,
                "kind": kind,
                "inputs": list(node.inputs),
                "attributes": attributes,
                # torch's sums round in another order for another memory format.
                "channels_last": [key for key, tensor in own.items() if is_channels_last(tensor)],
            }
        )
        for key, tensor in own.items():
            tensors[f"{node.name}.{key}"] = tensor.detach().cpu().contiguous()
    header: dict[str, Any] = {
        "version": VERSION,
        "nodes": nodes,
        "report": network.report.to_dict(),
    }
    header["sha256"] = _digest(header, tensors)
    _write(Path(path), safetensors.torch.save(tensors, {_KEY: json.dumps(header)}))


def _describe(name: str, module: nn.Module) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Kind, attributes and tensors from which `_build` makes the module again."""
    kind = type(module).__name__
    if isinstance(module, packed.PackedLayer) and kind in _PACKED:
        return kind, module.attributes(), module.tensors()
    if _TORCH.get(kind, (None,))[0] is not type(module):
        raise ValueError(
            f"network must hold known layers only, found {kind} at {name}; known besides the "
            f"packed ones are {', '.join(_TORCH)}"
        )
    attributes = {}
    for argument in _TORCH[kind][1].split():
        value = getattr(module, argument)
        if argument == "bias":
            value = value is not None
        elif argument.endswith("_quantizer"):
            value = _quantizer_name(name, value)
        attributes[argument] = list(value) if isinstance(value, tuple) else value
    return kind, attributes, dict(module.state_dict())


def _quantizer_name(node: str, quantizer: quantizers.Quantizer | None) -> str | None:
    if quantizer is None:
        return None
    name = quantizers.name_of(quantizer)
    if name is None:
        raise ValueError(
            f"network must hold registered quantizers only, found {quantizer!r} at {node}; "
            "bnn_ext.quantizers.register gives it a name"
        )
    return name


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a temporary file in the same folder, then a rename."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- loading --------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> PackedNetwork:
    """Reads a network that `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, altered, written by a newer version, or something else
            altogether. No code from the file runs.
    """
    data = Path(path).read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        header = json.loads(metadata[_KEY])
        version = header["version"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a complete bnn_ext model file ({type(error).__name__}: {error})"
        ) from None
    if version != VERSION:
        raise ValueError(
            f"{path} must have format version {VERSION}, found {version}; "
            "a newer bnn_ext may have written it"
        )
    try:
        as_written = json.dumps(header) == metadata[_KEY]  # and not another spelling of it
        if not as_written or header.pop("sha256") != _digest(header, tensors):
            raise ValueError("its checksum does not match its content")
        nodes = [_node(description, tensors) for description in header["nodes"]]
        _check_wiring(nodes)
        if tensors:
            raise ValueError(f"no node owns the tensors {', '.join(sorted(tensors))}")
        return PackedNetwork(nodes, Report.from_dict(header["report"]))
    except Exception as error:  # whatever constructors say to arguments that are nonsense
        raise ValueError(f"{path} is damaged: {error}") from None


def _node(description: dict[str, Any], tensors: dict[str, Tensor]) -> Node:
    """One node, its tensors taken out of `tensors`."""
    name, inputs = description["name"], description["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise ValueError(f"node {name} must take one input, found {inputs}")
    prefix = name + "."
    own = {
        key.removeprefix(prefix): tensors.pop(key)
        for key in list(tensors)
        if key.startswith(prefix) and "." not in key.removeprefix(prefix)
    }
    for key in description["channels_last"]:
        own[key] = own[key].clone(memory_format=torch.channels_last)
    try:
        module = _build(description["kind"], description["attributes"], own)
    except Exception as error:
        raise ValueError(f"node {name}: {error}") from None
    return Node(name, module, tuple(inputs))


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


def _check_wiring(nodes: list[Node]) -> None:
    """Every node has a name of its own and takes what came before it."""
    known = {INPUT}
    for node in nodes:
        if node.name in known:
            raise ValueError(f"two nodes are called {node.name}")
        for source in node.inputs:
            if source not in known:
                raise ValueError(f"node {node.name} takes {source}, which does not come before it")
        known.add(node.name)
