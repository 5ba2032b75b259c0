"""Model files: safetensors, with the network as JSON in the header's metadata.

    {"version": 2,
     "inputs": ["input"],         # names of values
     "structure": "fc",           # of the outputs: a name, {"tuple": ["a", "b"]}, {"list": [...]},
                                  # {"dict": [["key", "a"], ...]}, or these in one another
     "rounds": false,
     "nodes": [{"name": "3", "kind": "PackedConv2d", "inputs": ["0"], "outputs": ["3"],
                "attributes": {...}, "orders": {}}, ...],
     "report": {"layers": [...], "notes": [...]},
     "sha256": "..."}             # of everything else in the file

The tensor `weight` of node `3` is called `3.weight`. Weights are stored as the ops define them,
`[out, ..., words]`, so one file runs on every CPU level and device. `orders` has the dimensions of
tensors that were not contiguous, outermost in memory first: torch's sums round in another order for
another one. A file is data only: kinds and operators come from fixed tables, and nothing in a file
is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert import files_v1
from bnn_ext.convert.network import Node, PackedNetwork
from bnn_ext.convert.report import Report
from bnn_ext.nn import fused, packed, pointwise, pooling, real_inputs, torch_calls

VERSION = 2
_KEY = "bnn_ext"  # of our JSON in the safetensors metadata

_KINDS: dict[str, type[packed.PackedLayer]] = {
    kind.__name__: kind
    for kind in (
        fused.Elementwise,
        fused.FusedConv2d,
        fused.FusedLinear,
        real_inputs.BinaryWeightConv2d,
        real_inputs.BinaryWeightLinear,
        packed.Pack,
        packed.PackedConv2d,
        packed.PackedFlatten,
        packed.PackedLinear,
        packed.PackedMaxPool2d,
        real_inputs.RealInputConv2d,
        real_inputs.RealInputLinear,
        packed.SelectChannels,
        pointwise.PointwiseConv2d,
        pooling.RealAvgPool2d,
        pooling.RealGlobalAvgPool2d,
        pooling.RealMaxPool2d,
        torch_calls.ToFormat,
        torch_calls.TorchCall,
    )
}
_CONTAINERS: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, dict, OrderedDict)}

# Attributes that files of before do not have, and what they would say.
_ADDED = {"Elementwise": {"dtype": "float32"}}

_FIELDS = ("version", "inputs", "structure", "rounds", "nodes", "report")
_NODE_FIELDS = ("name", "kind", "inputs", "outputs", "attributes", "orders")


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
        ValueError: it holds a module that the file format does not know, as where `convert` left
            the model whole, or gives its outputs in something else than lists, tuples and dicts.
    """
    if not isinstance(network, PackedNetwork):
        raise TypeError(
            f"network must be what bnn_ext.convert returns, found {type(network).__name__}"
        )
    nodes, tensors = [], {}
    for node, module in zip(network.nodes, network.steps, strict=True):
        layer = _known(node.name, module, network.report)
        own = layer.tensors()
        nodes.append(
            {
                "name": node.name,
                "kind": type(layer).__name__,
                "inputs": list(node.inputs),
                "outputs": list(node.outputs),
                "attributes": layer.attributes(),
                "orders": _orders(own),
            }
        )
        for key, tensor in own.items():
            # A clone, since safetensors refuses tensors that share memory.
            tensors[f"{node.name}.{key}"] = tensor.cpu().clone(
                memory_format=torch.contiguous_format
            )
    header: dict[str, Any] = {
        "version": VERSION,
        "inputs": list(network.inputs),
        "structure": _described(network.structure),
        "rounds": network.rounds,
        "nodes": nodes,
        "report": network.report.to_dict(),
    }
    header["sha256"] = _digest(header, tensors)
    _write(Path(path), safetensors.torch.save(tensors, {_KEY: _text(header)}))


def _known(name: str, module: nn.Module, report: Report) -> packed.PackedLayer:
    """The module, if the format knows it."""
    kind = type(module).__name__
    if isinstance(module, packed.PackedLayer) and _KINDS.get(kind) is type(module):
        if isinstance(module, torch_calls.TorchCall):
            _check_call(module.operator)
        return module
    reasons = [layer.reason for layer in report.layers if layer.kind == kind]
    why = f" (convert left it: {reasons[0]})" if reasons else ""
    raise ValueError(
        f"network must hold known layers only, found {kind} at {name}{why}; "
        f"known are {', '.join(_KINDS)}"
    )


def _check_call(operator: Any) -> None:
    if operator not in torch_calls.SAVED:
        raise ValueError(f"operator must be one that files may name, found {operator!r}")


def _orders(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """The order of dimensions in memory, of tensors that are not contiguous."""
    orders = {}
    for key, tensor in tensors.items():
        # Where strides are equal, a dimension of size 1 lies inside.
        sizes = list(zip(tensor.stride(), tensor.shape, strict=True))
        order = sorted(range(tensor.dim()), key=sizes.__getitem__, reverse=True)
        if order != sorted(order):
            orders[key] = order
    return orders


def _described(structure: Any) -> Any:
    """How outputs are arranged, as JSON can hold it."""
    if isinstance(structure, str):
        return structure
    kind = type(structure).__name__
    if not isinstance(structure, (list, tuple, dict)) or _CONTAINERS.get(kind) is not type(
        structure
    ):
        raise ValueError(f"network must give its outputs in {', '.join(_CONTAINERS)}, found {kind}")
    if not isinstance(structure, dict):
        return {kind: [_described(value) for value in structure]}
    return {kind: [[_checked_key(key), _described(value)] for key, value in structure.items()]}


def _checked_key(key: Any) -> str | int:
    if not isinstance(key, (str, int)):
        raise ValueError(f"keys of outputs must be strings or integers, found {key!r}")
    return key


def _text(header: dict[str, Any]) -> str:
    return json.dumps(header, allow_nan=False, separators=(",", ":"))


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a temporary file in the same folder, then a rename."""
    temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")  # path.name may be as long as can be
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
        OSError: there is no such file, or it cannot be read.
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
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(
            f"{path} must have format version 1 or {VERSION}, found {version!r}; "
            "a newer bnn_ext may have written it"
        )
    try:
        # Nor may the header be another spelling of itself.
        text = files_v1.text(header) if version == 1 else _text(header)
        if text != metadata[_KEY] or header.pop("sha256", None) != _digest(header, tensors):
            raise ValueError("its checksum does not match its content")
        return _network(header, tensors)
    except Exception as error:  # whatever constructors say to arguments that are nonsense
        raise ValueError(f"{path} is damaged: {error}") from None


def _network(header: dict[str, Any], tensors: dict[str, Tensor]) -> PackedNetwork:
    owned = _by_owner(tensors)
    if header["version"] == 1:
        nodes, inputs, structure, rounds = files_v1.read(header, owned)
    else:
        nodes, inputs, structure, rounds = _read(header, owned)
    if owned:
        raise ValueError(f"no node owns the tensors of {', '.join(sorted(owned))}")
    _check_wiring(nodes, inputs, pytree.tree_leaves(structure))
    return PackedNetwork(nodes, inputs, structure, Report.from_dict(header["report"]), rounds)


def _by_owner(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each node."""
    owned: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        owner, dot, key = name.rpartition(".")
        if not dot:
            raise ValueError(f"no node owns the tensor {name}")
        owned[owner][key] = tensor
    return dict(owned)


def _read(header: dict[str, Any], owned: dict[str, dict[str, Tensor]]) -> files_v1.Contents:
    """Version 2; takes the tensors out of `owned`."""
    _check_fields("the header", header, _FIELDS)
    _check_fields("report", header["report"], ("layers", "notes"))
    if not isinstance(header["rounds"], bool):
        raise ValueError(f"rounds must be true or false, found {header['rounds']!r}")
    if not isinstance(header["nodes"], list):
        raise ValueError(f"nodes must be a list, found {header['nodes']!r}")
    nodes = [_node(description, owned) for description in header["nodes"]]
    inputs = _names("inputs", header["inputs"])
    return nodes, inputs, _arranged(header["structure"]), header["rounds"]


def _check_fields(what: str, found: Any, expected: Collection[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be an object, found {found!r}")
    if set(found) != set(expected):
        raise ValueError(f"{what} must have {', '.join(expected)}, found {', '.join(found)}")


def _names(what: str, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{what} must be a list of names, found {found!r}")
    return tuple(found)


def _arranged(description: Any) -> Any:
    """What `_described` describes."""
    if isinstance(description, str):
        return description
    if not isinstance(description, dict) or len(description) != 1:
        raise ValueError(f"structure must be a name or one container, found {description!r}")
    ((kind, parts),) = description.items()
    if kind not in _CONTAINERS or not isinstance(parts, list):
        raise ValueError(
            f"structure must be a list of parts of {', '.join(_CONTAINERS)}, found {description!r}"
        )
    if not issubclass(_CONTAINERS[kind], dict):
        return _CONTAINERS[kind]([_arranged(part) for part in parts])
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in parts):
        raise ValueError(f"{kind} must be a list of pairs, found {parts!r}")
    arranged = _CONTAINERS[kind]((_checked_key(key), _arranged(part)) for key, part in parts)
    if len(arranged) != len(parts):
        raise ValueError(f"structure must have every key once, found {description!r}")
    return arranged


def _node(description: Any, owned: dict[str, dict[str, Tensor]]) -> Node:
    _check_fields("a node", description, _NODE_FIELDS)
    name = description["name"]
    if not isinstance(name, str):
        raise ValueError(f"the name of a node must be a string, found {name!r}")
    try:
        inputs = _names("inputs", description["inputs"])
        outputs = _names("outputs", description["outputs"])
        tensors = owned.pop(name, {})
        for key, order in description["orders"].items():
            tensors[key] = _in_order(tensors[key], order)
        layer = _layer(description["kind"], description["attributes"], tensors)
        if (len(inputs), len(outputs)) != _arity(layer):
            raise ValueError(
                "inputs and outputs must be {} and {}, found {} and {}".format(
                    *_arity(layer), len(inputs), len(outputs)
                )
            )
    except Exception as error:
        raise ValueError(f"node {name}: {type(error).__name__}: {error}") from None
    return Node(name, layer, inputs, outputs)


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """The tensor with its dimensions in another order in memory."""
    if sorted(order) != list(range(tensor.dim())):
        raise ValueError(f"orders must be of all {tensor.dim()} dimensions, found {order!r}")
    back = [order.index(dim) for dim in range(tensor.dim())]
    return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def _layer(kind: Any, attributes: Any, tensors: dict[str, Tensor]) -> packed.PackedLayer:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, found {kind!r}")
    if isinstance(attributes, dict):
        attributes = _ADDED.get(kind, {}) | attributes
    _check_fields("attributes", attributes, _KINDS[kind].attribute_names)
    if _KINDS[kind] is torch_calls.TorchCall:
        _check_call(attributes["operator"])
    return _KINDS[kind](**attributes, **tensors)


def _arity(layer: packed.PackedLayer) -> tuple[int, int]:
    """How many values the layer takes and gives."""
    if isinstance(layer, (fused.FusedLinear, fused.FusedConv2d, fused.Elementwise)):
        return 1 + layer.residuals, layer.floats + (layer.threshold is not None)
    if isinstance(layer, packed.SelectChannels):
        return len(layer.channels), 1
    if isinstance(layer, torch_calls.TorchCall):
        return layer.inputs, 1
    return 1, 1


def _check_wiring(nodes: Sequence[Node], inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Every node and value has a name of its own, and values are made before they are taken."""
    known: set[str] = set()
    names: set[str] = set()

    def make(value: str) -> None:
        if value in known:
            raise ValueError(f"two values are called {value}")
        known.add(value)

    for name in inputs:
        make(name)
    for node in nodes:
        if node.name in names:
            raise ValueError(f"two nodes are called {node.name}")
        names.add(node.name)
        for value in node.inputs:
            if value not in known:
                raise ValueError(f"node {node.name} takes {value}, which does not come before it")
        for value in node.outputs:
            make(value)
    for value in outputs:
        if value not in known:
            raise ValueError(f"the network gives {value}, which no node makes")
