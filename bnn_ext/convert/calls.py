"""Real values of a lowered graph: calls that torch makes, and pools by our kernels.

Most of it is about memory formats: torch rounds sums of real values in another order in another
one, and our kernels give torch.channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten
from bnn_ext.convert.network import Node, Origin
from bnn_ext.nn import packed
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.pooling import RealAvgPool2d, RealGlobalAvgPool2d, RealMaxPool2d, RealPool
from bnn_ext.nn.torch_calls import ToFormat, TorchCall, call_name, to_json

# Their sums round in another order for another memory format.
_SUMS = {
    aten.convolution.default,
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
}
# These give the same in every memory format: each result is rounded once, or not at all. All other
# calls may have another algorithm for each format.
_ROUND_ONCE = {
    getattr(aten, name)
    for name in (
        "abs add cat clamp clamp_max clamp_min constant_pad_nd div eq expand flatten flip ge gt "
        "hardtanh index_select le lt max_pool2d maximum minimum mul ne neg relu reshape select "
        "slice split split_with_sizes sub where _to_copy"
    ).split()
}
_POOLS = {aten.max_pool2d.default: RealMaxPool2d, aten.avg_pool2d.default: RealAvgPool2d}
# They give torch.channels_last where their maps have it, as all elementwise calls do.
_KEEP_FORMAT = {
    *_POOLS,
    aten._adaptive_avg_pool2d.default,
    aten.batch_norm.default,
    aten.cat.default,
    aten.constant_pad_nd.default,
}
_IGNORED = ("device", "layout", "pin_memory", "non_blocking", "memory_format")


@dataclass
class Lowered:
    """A network's nodes, and which call of the model became which of them.

    Attributes:
        nodes: in running order.
        inputs, outputs: names of values.
        rounds: whether real values are summed in another order than in the model.
        origins: for values of the network, where in the model they come from.
        made: for each call of the graph the module that does its work.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    rounds: bool = False
    made: dict[GraphNode, packed.PackedLayer] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)


class Calls:
    """A network as it grows, and the real values in it.

    Attributes:
        exact: whether sums of real values must round as in the model.
        result: what was made so far.
        floats: names of real values.
        channels_last: those of them known to lie in it.
        names: of all values.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.result = Lowered()
        self.floats: dict[GraphNode, str] = {}
        self.channels_last: set[str] = set()
        self.names: set[str] = set()

    def call(self, node: GraphNode) -> None:
        """A call of torch, as the model makes it, or a pool by our kernels."""
        if self.pools(node):
            self.pool(node)
            return
        if not self.exact and _is_pointwise(node):
            self.pointwise(node)
            return
        target, args, kwargs = _in_torch(node)
        inputs: list[str] = []
        tensors: dict[str, Tensor] = {}
        layout = self.format_of(node)

        def template(value: Any) -> Any:
            if isinstance(value, GraphNode) and ir.is_variable(value):
                inputs.append(self.float_value(value, layout))
                return {"input": len(inputs) - 1}
            if isinstance(value, GraphNode):
                name = f"tensor_{len(tensors)}"
                tensor = value.meta["tensor"]
                if layout is torch.channels_last and tensor.dim() == 4 and not self.exact:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                tensors[name] = tensor
                return {"tensor": name}
            if isinstance(value, (list, tuple)):
                return [template(item) for item in value]
            return to_json(value)

        arguments = [template(value) for value in args]
        named = {key: template(value) for key, value in kwargs.items() if key not in _IGNORED}
        module = TorchCall(call_name(target), arguments, named, **tensors)
        name = self.add_floats(node, module, inputs)
        if self.keeps_channels_last(node, layout):
            self.channels_last.add(name)

    def add_floats(self, node: GraphNode, module: packed.PackedLayer, inputs: Sequence[str]) -> str:
        """The name of what a module gives that does the work of one call."""
        name = self.unique(node.meta["layer"] or "layer")
        self.floats[node] = name
        self.result.made[node] = module
        self.result.nodes.append(Node(name, module, tuple(inputs), (name,)))
        return name

    def pools(self, node: GraphNode) -> bool:
        """Whether it pools a float32 map in torch.channels_last, as our kernels do."""
        is_mean = not self.exact and _is_global_mean(node)
        if not (is_mean or node.target in _POOLS) or node.meta["dtype"] != torch.float32:
            return False
        source = node.args[0]
        assert isinstance(source, GraphNode)
        if node.target == aten.avg_pool2d.default:
            # Of contiguous maps torch's averages are the same but for the sign of zeros.
            if self.exact and not source.meta["channels_last"]:
                return False
            if (_pool_arguments(node).get("divisor_override") or 1) < 1:
                return False
        return self.floats.get(source) in self.channels_last

    def pool(self, node: GraphNode) -> None:
        module: RealPool
        if node.target in _POOLS:
            module = _POOLS[node.target](**_pool_arguments(node))
        else:
            module = RealGlobalAvgPool2d()
            self.result.rounds = True
        source = self.float_value(node.args[0])
        self.channels_last.add(self.add_floats(node, module, (source,)))

    def pointwise(self, node: GraphNode) -> None:
        weight, bias = map(ir.tensor_of, node.args[1:3])
        assert weight is not None
        module = PointwiseConv2d(weight.flatten(1), bias)
        self.result.rounds = True
        source = self.float_value(node.args[0])
        self.channels_last.add(self.add_floats(node, module, (source,)))

    def keeps_channels_last(self, node: GraphNode, layout: torch.memory_format | None) -> bool:
        """Whether a call of torch whose maps are in `layout`, if any, gives torch.channels_last."""
        if node.target == aten.convolution.default:
            return not self.exact or node.meta["channels_last"]
        is_elementwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if not is_elementwise and node.target not in _KEEP_FORMAT:
            return False
        if layout is not None:
            return layout is torch.channels_last
        shape = node.meta["shape"]
        maps = [n for n in node.all_input_nodes if len(n.meta.get("shape", ())) == len(shape) == 4]
        if is_elementwise:  # what is broadcast has no say
            maps = [n for n in maps if n.meta["shape"] == shape]
        return bool(maps) and all(self.floats.get(n) in self.channels_last for n in maps)

    def format_of(self, node: GraphNode) -> torch.memory_format | None:
        """The memory format in which the call must see its map, None for any."""
        if self.exact:
            if node.target is ir.select and any(map(_reads_part, node.users)):
                source = node.args[0].meta
                return torch.channels_last if source["channels_last"] else torch.contiguous_format
            if getattr(node.target, "overloadpacket", None) in _ROUND_ONCE or _reads_part(node):
                return None
            return node.meta.get("reads")  # None where only values are moved
        self.result.rounds |= node.target in _SUMS
        return torch.channels_last if node.target == aten.convolution.default else None

    def float_value(self, node: GraphNode, layout: torch.memory_format | None = None) -> str:
        """The name of the node's floats, in a memory format if one is asked for."""
        name = self.floats[node]
        if layout is None or len(node.meta["shape"]) != 4:
            return name
        last = layout is torch.channels_last
        formatted = f"{name}.{'channels_last' if last else 'contiguous'}"
        if formatted not in self.names:
            self.names.add(formatted)
            module = ToFormat(last)
            if last:
                self.channels_last.add(formatted)
            self.result.nodes.append(Node(formatted, module, (name,), (formatted,)))
        return formatted

    def output(self, node: GraphNode) -> str:
        """A result of the network, in the memory format of the model's."""
        if node not in self.floats:
            raise AssertionError(f"{node} has no value")
        last = node.meta["channels_last"]
        return self.float_value(node, torch.channels_last if last else torch.contiguous_format)

    def unique(self, name: str) -> str:
        count, found = 1, name
        while found in self.names:
            count += 1
            found = f"{name}.{count}"
        self.names.add(found)
        return found


def _is_global_mean(node: GraphNode) -> bool:
    """Whether it is the mean of each channel of a map, which stays a map."""
    if node.target != aten.mean.dim or len(node.meta["shape"]) != 4:
        return False
    dims, keepdim = node.args[1], ir.argument(node, 2, "keepdim", False)
    if not keepdim or dims is None or node.kwargs.get("dtype") is not None:
        return False
    return {dim % 4 for dim in dims} == {2, 3}


def _is_pointwise(node: GraphNode) -> bool:
    """Whether it is a convolution of maps with a constant weight, 1x1 at every place."""
    if node.target != aten.convolution.default:
        return False
    _, weight, bias, stride, padding, _, transposed, _, groups = node.args
    tensor = ir.tensor_of(weight)
    return (
        tensor is not None
        and tensor.shape[2:] == (1, 1)
        and not ir.is_variable(bias)
        and (list(stride), list(padding)) == ([1, 1], [0, 0])
        and not transposed
        and groups == 1
    )


def _reads_part(node: GraphNode) -> bool:
    """Whether the call of the model had a part of a larger tensor before it."""
    return node.meta.get("reads") is torch.preserve_format


def _in_torch(node: GraphNode) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call by operators of torch alone."""
    if node.target not in (ir.select, ir.flatten):
        return node.target, node.args, node.kwargs
    source = node.args[0]
    if node.target is ir.flatten:
        return aten.flatten.using_ints, (source, 1), {}
    index = node.args[1].meta["tensor"]
    first, last = int(index[0]), int(index[-1])
    if torch.equal(index, torch.arange(first, first + len(index))):
        return aten.slice.Tensor, (source, 1, first, last + 1), {}
    return aten.index_select.default, (source, 1, node.args[1]), {}


def _pool_arguments(node: GraphNode) -> dict[str, Any]:
    """The arguments of a pool of torch, windows as height and width."""
    names = [argument.name for argument in node.target._schema.arguments]
    arguments = dict(zip(names[1:], node.args[1:], strict=False)) | node.kwargs
    for name in ("kernel_size", "stride", "padding", "dilation"):
        if arguments.get(name):  # without a stride it is empty
            first, *rest = arguments[name]
            arguments[name] = (first, *(rest or [first]))
    arguments["stride"] = arguments.get("stride") or arguments["kernel_size"]
    return arguments
