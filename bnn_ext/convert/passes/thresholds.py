"""Signs of chains become comparisons at their source: BatchNorm and activation disappear.

    product -> bias -> max-pool -> BatchNorm -> Hardtanh -> sign
    product -> compare -> pool of signs

Where the source is a product of signs the comparison is one of integers, and only bits leave the
layer. Selections, concatenations and flattened maps of what is compared become those of signs.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.chain import Chain, direction
from bnn_ext.convert.ir import aten
from bnn_ext.convert.thresholds import (
    NotMonotoneError,
    Threshold,
    float_threshold,
    integer_threshold,
)
from bnn_ext.ops.checks import FLOATS


def compare_at_sources(graph: Graph, *, real_products: bool) -> None:
    """Rewrites the graph in place.

    Args:
        graph: with `ir.sign` and `ir.product` nodes.
        real_products: whether products of real values are computed by our kernels, which can
            compare them.
    """
    for node in list(graph.find_nodes(op="call_function", target=ir.sign)):
        value = node.args[0]
        start = Chain.at_sign(value.meta["shape"][1])
        moved = _Pass(graph, node, real_products).signs_of(value, start)
        if moved is not None:
            ir.replace(node, moved)
        graph.eliminate_dead_code()  # what is left of an attempt would count as a use


class _Pass:
    """One sign on its way to the sources of what it is taken of."""

    def __init__(self, graph: Graph, sign: Node, real_products: bool) -> None:
        self.graph = graph
        self.sign = sign
        self.real_products = real_products
        self.undefined = False  # whether NaN can occur on the way

    def signs_of(self, value: Node, chain: Chain) -> Node | None:
        """A node with the signs of what the chain makes of the value.

        Returns:
            None if there is no better one than the sign that is there.
        """
        alone = len(value.users) == 1
        if ir.calls(value, ir.product):
            bits_in = ir.holds_signs(value.args[0])
            if alone and (bits_in or self.real_products):
                return self.compared(value, chain, integers=bits_in)
        elif alone and (through := self.through(value, chain)) is not None:
            return through
        if self.undefined:  # a comparison nearer to the sign would not see the overflow before it
            return None
        if not chain.nodes:
            return None if value is self.sign.args[0] else self.sign_here(value)
        return self.compared(value, chain, integers=False)

    def through(self, value: Node, chain: Chain) -> Node | None:
        """The signs of a value that nothing else needs, taken in front of what makes it."""
        source = value.args[0] if value.args else None
        if ir.calls(value, aten.cat.default):
            return self.through_cat(value, chain)
        if ir.calls(value, ir.select):
            assert isinstance(source, Node)
            index = ir.tensor_of(value.args[1])
            assert index is not None
            before = chain.behind_select(index, source.meta["shape"][1])
            return None if before is None else self.moved(value, source, before)
        if ir.calls(value, ir.flatten):
            assert isinstance(source, Node)
            before = chain.behind_flatten(source.meta["shape"][1])
            return None if before is None else self.moved(value, source, before)
        if ir.calls(value, aten.max_pool2d.default):
            return self.through_pool(value, chain)
        slope = direction(value)
        if isinstance(slope, str):
            self.sign.meta["why"] = slope
            return None
        (input,) = (n for n in value.all_input_nodes if ir.is_variable(n))
        return self.signs_of(input, chain.behind(value, slope.cpu()))

    def moved(self, value: Node, source: Node, chain: Chain) -> Node | None:
        signs = self.signs_of(source, chain)
        if signs is None:
            return None
        with self.graph.inserting_before(self.sign):
            return ir.call(self.graph, value.target, (signs, *value.args[1:]), value)

    def through_cat(self, value: Node, chain: Chain) -> Node | None:
        parts = value.args[0]
        if ir.argument(value, 1, "dim", 0) not in (1, 1 - len(value.meta["shape"])):
            return None
        signs, first = [], 0
        for part in parts:
            if not ir.is_variable(part):
                return None
            channels = part.meta["shape"][1]
            own = chain.of_part(first, channels)
            found = self.signs_of(part, own)
            if found is None:
                return None
            signs.append(found)
            first += channels
        with self.graph.inserting_before(self.sign):
            return ir.call(self.graph, aten.cat.default, (signs, 1), value)

    def through_pool(self, value: Node, chain: Chain) -> Node | None:
        source = value.args[0]
        assert isinstance(source, Node)
        kernel = _pair(value.args[1])
        stride = _pair(ir.argument(value, 2, "stride", [])) or kernel
        padding = _pair(ir.argument(value, 3, "padding", [0, 0]))
        dilation = _pair(ir.argument(value, 4, "dilation", [1, 1]))
        ceil_mode = ir.argument(value, 5, "ceil_mode", False)
        if any(size != 1 for size in dilation) and any(padding):
            self.sign.meta["why"] = (
                "a max-pool is dilated and padded: a window may hold padding alone"
            )
            return None
        signs = self.signs_of(source, chain)
        if signs is None:
            return None
        with self.graph.inserting_before(self.sign):
            falling = chain.slope < 0
            turned = None
            if bool(falling.any()):
                turned = ir.constant(self.graph, falling.to(source.meta["device"]), value)
            window = (kernel, stride, padding, dilation, ceil_mode)
            return ir.call(self.graph, ir.pool, (signs, turned, *window), value)

    def sign_here(self, value: Node) -> Node:
        for user in value.users:
            if ir.calls(user, ir.sign):
                return user
        with self.graph.inserting_after(value):
            layer, kind = self.sign.meta["layer"], self.sign.meta["kind"]  # an input has none
            return ir.call(self.graph, ir.sign, (value,), value, layer=layer, kind=kind)

    def compared(self, value: Node, chain: Chain, integers: bool) -> Node | None:
        """The chain's sign as a comparison of the value."""
        channels = value.meta["shape"][1]
        try:
            if integers:
                weight = ir.tensor_of(value.args[1])
                assert weight is not None
                found = integer_threshold(chain.evaluate, weight[0].numel(), channels)
            elif value.meta["dtype"] in FLOATS:  # half precision: its chain rounds what it is given
                found = float_threshold(chain.evaluate, channels)
            else:
                return None
        except NotMonotoneError as error:
            self.sign.meta["why"] = str(error)
            self.undefined = True
            return None
        return self.with_threshold(value, found, chain)

    def with_threshold(self, value: Node, found: Threshold, chain: Chain) -> Node:
        device = value.meta["device"]
        with self.graph.inserting_before(self.sign):
            threshold = ir.constant(self.graph, found.threshold.to(device), self.sign)
            rising = ir.constant(self.graph, found.rising.to(device), self.sign)
            node = ir.call(
                self.graph, ir.compare, (value, threshold, rising), self.sign, absorbed=chain.nodes
            )
            node.meta["shape"] = value.meta["shape"]
            node.meta |= {key: self.sign.meta.get(key) for key in ("why", "note")}
            return node


def _pair(value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value, value)
    sizes = tuple(value)
    return sizes * 2 if len(sizes) == 1 else sizes
