"""The last step: the graph's calls as modules on packed bits, and what is left as calls of torch.

Values of ±1 are bits, NHWC; all others are as in torch. A product meets what follows it here: with
a comparison it gives bits, with a `finish` floats, and with both it gives both at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph
from torch.fx import Node as GraphNode

from bnn_ext import ops
from bnn_ext.convert import ir
from bnn_ext.convert.calls import Calls, Lowered
from bnn_ext.convert.ir import aten
from bnn_ext.convert.network import Node, Origin
from bnn_ext.nn import packed, real_inputs
from bnn_ext.nn.fused import Elementwise, FusedConv2d, FusedLinear
from bnn_ext.ops.epilogue import operand_count
from bnn_ext.reference import pack_bits

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_COMPARISONS = (ir.sign, ir.compare)
_Pair = tuple[int, int]
_Window = tuple[_Pair, _Pair, _Pair, _Pair, bool]  # of a pool
_BY_TORCH = (real_inputs.BinaryWeightConv2d, real_inputs.BinaryWeightLinear)


@dataclass
class Bits:
    """A packed value: its name in the network, and where its channels lie.

    Attributes:
        order: packed channel j is channel order[j] of the model; None if they lie in order. What a
            shuffle does to maps costs nothing where the next weight can be shuffled instead.
    """

    name: str
    order: Tensor | None = None


def lower(graph: Graph, *, exact: bool) -> Lowered:
    """Makes modules of a graph that the passes have been through.

    Args:
        graph: stays as it is.
        exact: whether sums of real values must round as in the model: torch computes them, in the
            memory format of the model. Else our kernels sum where weights are binary, and torch
            works on torch.channels_last, the format of our maps.
    """
    lowering = _Lowering(exact)
    for node in graph.nodes:
        lowering.add(node)
    lowering.note_origins()
    return lowering.result


class _Lowering(Calls):
    def __init__(self, exact: bool) -> None:
        super().__init__(exact)
        self.bits: dict[GraphNode, Bits] = {}

    # --- nodes ------------------------------------------------------------------------------------

    def add(self, node: GraphNode) -> None:
        if node.op == "placeholder":
            name = self.unique("input")
            self.floats[node] = name
            self.result.inputs.append(name)
        elif node.op == "output":
            for value in node.args[0]:
                self.result.outputs.append(self.output(value))
        elif node.op == "call_function" and node not in self.bits:
            self.add_call(node)

    def add_call(self, node: GraphNode) -> None:
        if node.target is ir.product:
            if not self.joins_user(node):
                self.finish(node, node)
        elif node.target is ir.finish:
            start = node.args[0]
            assert isinstance(start, GraphNode)
            self.finish(start, node)
        elif node.target in _COMPARISONS:
            self.compare(node)
        elif self.is_bits(node):
            self.move_bits(node)
        else:
            self.call(node)

    def joins_user(self, product: GraphNode) -> bool:
        """Whether the product runs with the one call behind it."""
        if len(product.users) != 1:
            return False
        (user,) = product.users
        if user.target is ir.finish:
            return user.args[0] is product
        by_our_kernel = not self.exact or product.args[0] in self.bits
        return user.target is ir.compare and by_our_kernel

    def is_bits(self, node: GraphNode) -> bool:
        first = node.args[0] if node.args else None
        if isinstance(first, (list, tuple)):
            return bool(first) and all(part in self.bits for part in first)
        return first in self.bits and node.target in (ir.pool, ir.select, ir.flatten)

    def note_origins(self) -> None:
        origins = self.result.origins
        for node, name in self.floats.items():
            if node.meta.get("call"):
                origins[name] = Origin(node.meta["call"], bits=False)
        for node, bits in self.bits.items():
            if node.meta.get("call"):
                origins[bits.name] = Origin(node.meta["call"], True, bits.order)

    # --- layers -----------------------------------------------------------------------------------

    def finish(self, start: GraphNode, end: GraphNode) -> None:
        """A layer and the steps behind it; `end` is `start` where there are none."""
        comparison = self.comparison_of(end)
        needed = any(user is not comparison for user in end.users)
        operations, operands = (), ()
        if end is not start:
            _, operations, _, *operands = end.args
        if not ir.calls(start, ir.product):
            self.elementwise(start, end, operations, operands, comparison, needed)
            return
        if start.args[0] not in self.bits:
            self.real_product(start, end, operations, operands, comparison, needed)
            return
        plain = not operations and comparison is None
        steps, tensors, maps = self.steps(operations, operands)
        weight, arguments = self.product_arguments(start)
        arguments |= {"dtype": _DTYPES[end.meta["dtype"]]}
        inputs = (self.bits[start.args[0]].name, *maps)
        is_map = weight.dim() == 4
        if plain:
            if is_map:
                arguments["channels_last"] = True
            kind: Any = packed.PackedConv2d if is_map else packed.PackedLinear
        else:
            kind = FusedConv2d if is_map else FusedLinear
            arguments |= {"operations": steps, "floats": needed, **tensors}
            arguments |= self.float_threshold(comparison)
        module = kind(weight, **arguments)
        self.emit(end, start, inputs, module, needed, comparison)

    def comparison_of(self, end: GraphNode) -> GraphNode | None:
        """The comparison of the layer's floats that its kernel can make at once."""
        if (
            end.meta["dtype"] not in _DTYPES
            or end.target is ir.product
            and (end.args[0] not in self.bits)
        ):
            return None
        for user in end.users:
            if user.target in _COMPARISONS and user.args[0] is end:
                return user
        return None

    def steps(
        self, operations: Sequence[str], operands: Sequence[GraphNode]
    ) -> tuple[list[str], dict[str, Tensor], list[str]]:
        """Steps of a fused layer, its tensors and the names of its further inputs."""
        given = iter(operands)
        steps: list[str] = []
        tensors: dict[str, Tensor] = {}
        maps: list[str] = []
        for operation in operations:
            own = [next(given) for _ in range(operand_count(operation))]
            if operation == "add" and ir.is_variable(own[0]):
                steps.append("residual")
                maps.append(self.float_value(own[0]))
                continue
            steps.append(operation)
            for operand in own:
                tensors[f"operand_{len(tensors)}"] = operand.meta["tensor"]
        return steps, tensors, maps

    def float_threshold(self, comparison: GraphNode | None) -> dict[str, Any]:
        if comparison is None:
            return {}
        if comparison.target is ir.sign:
            channels = comparison.meta["shape"][1]
            return {"threshold": torch.zeros(channels, device=comparison.meta["device"])}
        found = _threshold(comparison)
        # That of sums which something else takes, too, is an integer.
        return found | {"threshold": found["threshold"].float()}

    def product_arguments(self, product: GraphNode) -> tuple[Tensor, dict[str, Any]]:
        """The packed weight in the order of the input's channels, and the geometry."""
        signs = product.args[1].meta["tensor"]
        bits = self.bits.get(product.args[0])
        if bits is not None and bits.order is not None:
            signs = signs[:, bits.order.to(signs.device)]
        if signs.dim() == 2:
            return ops.pack(signs.float()), {"in_features": signs.shape[1]}
        stride, padding, dilation, groups, pad_value = product.args[2:]
        weight = ops.pack(signs.float().permute(0, 2, 3, 1).contiguous())
        return weight, {
            "in_channels": signs.shape[1] * groups,
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
            "pad_value": pad_value,
        }

    def real_product(
        self,
        start: GraphNode,
        end: GraphNode,
        operations: Sequence[str],
        operands: Sequence[GraphNode],
        comparison: GraphNode | None,
        needed: bool,
    ) -> None:
        """A layer with a real input; what follows it takes a pass of its own."""
        weight, arguments = self.product_arguments(start)
        is_map = weight.dim() == 4
        if self.exact or start.meta["dtype"] != torch.float32:
            if is_map:
                arguments["fan_in"] = arguments.pop("in_channels") // arguments["groups"]
                arguments["channels_last"] = start.args[1].meta["channels_last"]
            else:
                arguments["fan_in"] = arguments.pop("in_features")
            arguments |= {"scale": None, "bias": None, "dtype": _DTYPES[start.meta["dtype"]]}
            kind: Any = real_inputs.BinaryWeightConv2d if is_map else real_inputs.BinaryWeightLinear
        else:
            if is_map:
                arguments["channels_last"] = True
            kind = real_inputs.RealInputConv2d if is_map else real_inputs.RealInputLinear
            self.result.rounds = True
        source = self.float_value(start.args[0], self.format_of(start))
        self.emit(start, start, (source,), kind(weight, **arguments), True, None)
        if end is not start:
            self.elementwise(start, end, operations, operands, comparison, needed)

    def elementwise(
        self,
        start: GraphNode,
        end: GraphNode,
        operations: Sequence[str],
        operands: Sequence[GraphNode],
        comparison: GraphNode | None,
        needed: bool,
    ) -> None:
        """Steps on floats that are there, in one pass over memory."""
        steps, tensors, maps = self.steps(operations, operands)
        module = Elementwise(
            len(end.meta["shape"]) == 4,
            steps,
            needed,
            _DTYPES[end.meta["dtype"]],
            **tensors,
            **self.float_threshold(comparison),
        )
        inputs = (self.float_value(start), *maps)
        self.emit(end, end, inputs, module, needed, comparison)

    def emit(
        self,
        end: GraphNode,
        layer: GraphNode,
        inputs: Sequence[str],
        module: packed.PackedLayer,
        floats: bool,
        comparison: GraphNode | None,
    ) -> None:
        """A node that gives the floats of `end`, the bits of the comparison, or both."""
        name = self.unique(layer.meta["layer"] or "layer")
        outputs = [name] if floats or comparison is None else []
        if comparison is not None:
            outputs.append(self.unique(f"{name}.bits") if outputs else name)
            self.bits[comparison] = Bits(outputs[-1])
            self.result.made[comparison] = module
        if floats or comparison is None:
            self.floats[end] = name
            if isinstance(module, _BY_TORCH):
                last = layer.meta["channels_last"]
            else:
                last = module.gives_map or isinstance(module, real_inputs.RealInputConv2d)
            if last:
                self.channels_last.add(name)
        for node in {end, layer}:
            self.result.made[node] = module
        self.result.nodes.append(Node(name, module, tuple(inputs), tuple(outputs)))

    # --- bits -------------------------------------------------------------------------------------

    def compare(self, node: GraphNode) -> None:
        value = node.args[0]
        assert isinstance(value, GraphNode)
        if ir.calls(value, ir.product) and value not in self.floats:
            self.product_bits(value, node)
            return
        arguments = {} if node.target is ir.sign else self.float_threshold(node)
        module = packed.Pack(_is_map(node), **arguments)
        self.emit_bits(node, (self.float_value(value),), module, suffix=".pack")

    def product_bits(self, product: GraphNode, comparison: GraphNode) -> None:
        """A layer that gives bits and nothing else."""
        weight, arguments = self.product_arguments(product)
        is_map = weight.dim() == 4
        source = product.args[0]
        assert isinstance(source, GraphNode)
        if source in self.bits:
            kind: Any = packed.PackedConv2d if is_map else packed.PackedLinear
            name = self.bits[source].name
        else:
            kind = real_inputs.RealInputConv2d if is_map else real_inputs.RealInputLinear
            name = self.float_value(source)
            self.result.rounds = True
        module = kind(weight, **arguments, **_threshold(comparison))
        self.emit(comparison, product, (name,), module, False, comparison)

    def emit_bits(
        self,
        node: GraphNode,
        inputs: tuple[str, ...],
        module: packed.PackedLayer,
        order: Tensor | None = None,
        suffix: str = "",
    ) -> None:
        name = self.unique((node.meta["layer"] or "layer") + suffix)
        self.bits[node] = Bits(name, order)
        self.result.made[node] = module
        self.result.nodes.append(Node(name, module, inputs, (name,)))

    def move_bits(self, node: GraphNode) -> None:
        if node.target is ir.pool:
            source, falling, *window = node.args
            bits = self.bits[source]
            minimum = None
            if falling is not None:
                channels = falling.meta["tensor"]
                if bits.order is not None:
                    channels = channels[bits.order.to(channels.device)]
                minimum = pack_bits(channels)
            module = packed.PackedMaxPool2d(*cast(_Window, window), minimum)
            self.emit_bits(node, (bits.name,), module, bits.order)
        elif node.target is ir.flatten:
            source = node.args[0]
            bits = self.bits[source]
            channels, height, width = source.meta["shape"][1:]
            order = torch.arange(channels * height * width).view(channels, height * width)
            if bits.order is not None:
                order = order[bits.order]
            order = order.t().flatten()
            self.emit_bits(node, (bits.name,), packed.PackedFlatten(channels), order)
        else:
            self.select_bits(node)

    def select_bits(self, node: GraphNode) -> None:
        """Channels of packed values, chosen or put side by side."""
        if node.target is ir.select:
            source = node.args[0]
            parts = [self.bits[source]]
            channels = [source.meta["shape"][1]]
            index = node.args[1].meta["tensor"].cpu()
        else:
            parts = [self.bits[part] for part in node.args[0]]
            channels = [part.meta["shape"][1] for part in node.args[0]]
            index = torch.arange(sum(channels))
        orders = [
            torch.arange(count) if bits.order is None else bits.order
            for bits, count in zip(parts, channels, strict=True)
        ]
        first = [sum(channels[:i]) for i in range(len(channels))]
        order = torch.cat([o + start for o, start in zip(orders, first, strict=True)])
        place = torch.empty_like(order)  # of each channel of the model among the packed ones
        place[order] = torch.arange(len(order))
        if node.target is not ir.select:
            # The channels lie as they come; whoever needs another order says so later.
            module = packed.SelectChannels(channels, torch.arange(len(order), dtype=torch.int32))
            in_order = torch.equal(order, index)
            names = tuple(bits.name for bits in parts)
            self.emit_bits(node, names, module, None if in_order else order)
        elif len(index) == len(order) and _only_weights_see(node):
            # Packed channel j is channel order[j] of the source: which of the result is that?
            result = torch.empty_like(index)
            result[place[index]] = torch.arange(len(index))
            self.bits[node] = Bits(parts[0].name, result)
        else:
            module = packed.SelectChannels(channels, place[index].int())
            self.emit_bits(node, (parts[0].name,), module)


def _is_map(node: GraphNode) -> bool:
    """Whether the channels of a comparison are dimension 1 of a map, not the last one of rows."""
    return len(node.meta["shape"]) == 4


def _threshold(comparison: GraphNode) -> dict[str, Any]:
    threshold, rising = (n.meta["tensor"] for n in comparison.args[1:])
    return {"threshold": threshold, "flip": None if bool(rising.all()) else pack_bits(~rising)}


def _only_weights_see(node: GraphNode) -> bool:
    """Whether all that use the bits are products whose weights can be put in any order."""
    return all(
        user.target is ir.product and (user.args[1].meta["tensor"].dim() == 2 or user.args[5] == 1)
        for user in node.users
    )


def macs_of(node: GraphNode) -> int:
    """Multiply-accumulates of a linear layer or convolution for one sample, 0 for other calls."""
    if not ir.calls(node, aten.convolution.default, aten.linear.default):
        return 0
    weight = ir.tensor_of(node.args[1])
    if weight is None:
        return 0
    outputs = math.prod(node.meta["shape"][1:])
    return outputs * (weight.numel() // weight.shape[0])
