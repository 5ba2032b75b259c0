"""Finds the binary layers by what they compute: products with a weight of ±s, and their signs.

A linear layer or convolution with a constant weight that takes two values ±s in each output channel
becomes a `product` with a weight of ±1, a multiplication by s and an addition of the bias. If its
input is ±1 as well, wherever that comes from, the input becomes a `sign`.

That a value is the sign of another one is found by asking: what lies between them is evaluated at
probes. So `sign(x)`, `(x >= 0) * 2 - 1` and `f(x) + (sign(x) - f(x)).detach()` are all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten

# Weights are known up to a scale: what a straight-through estimator adds and takes away again
# leaves some rounding. A real weight comes nowhere near.
_ROUNDING = 2.0**-10
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of packed layers
_FEW = 0.01  # of a weight may be 0, the sign of 0 in most code

# Elementwise calls that may stand between a value and its sign.
_ELEMENTWISE = {
    getattr(aten, name)
    for name in (
        "abs add bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min copysign div eq "
        "floor full_like ge gt hardtanh le leaky_relu logical_and logical_not logical_or lt "
        "maximum minimum mul ne neg ones_like pow relu remainder round rsub sgn sigmoid sign sub "
        "tanh where zeros_like _to_copy"
    ).split()
}
# Where the sign of 0 is not +1, so many values may be 0: by chance, not by a ReLU, by padding or in
# sums of signs.
_FEW_ZEROS = 1e-3
_DEEPEST = 40  # calls between a value and its sign

_TINY = 1e-30  # vanishes where a number is added
_PROBES = (1e-6, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 2.0, 10.0, 1e3)


class Binary(NamedTuple):
    """A weight as signs times scale, and what was rounded to get there."""

    signs: Tensor
    scale: Tensor | None
    note: str


def find_products(graph: Graph) -> None:
    """Rewrites the graph in place."""
    signs: dict[Node, Node | None] = {}
    for node in list(graph.nodes):
        weight = _weight(node)
        binary = None if weight is None else as_binary(weight)
        if binary is None:
            continue
        if node.meta["dtype"] not in _DTYPES:
            dtype = str(node.meta["dtype"]).removeprefix("torch.")
            node.meta["left"] = f"computes in {dtype}; use float32, float16 or bfloat16"
            continue
        geometry = _geometry(node)
        if isinstance(geometry, str):
            node.meta["left"] = geometry
            continue
        input, geometry = _padding_of_signs(graph, node, geometry, signs)
        _rewrite(graph, node, input, binary, geometry)
    graph.eliminate_dead_code()


# --- weights --------------------------------------------------------------------------------------


def _weight(node: Node) -> Tensor | None:
    """The constant weight of a linear layer or convolution of variables."""
    if not ir.calls(node, aten.linear.default, aten.convolution.default):
        return None
    if not ir.is_variable(node.args[0]):
        return None
    bias = ir.argument(node, 2, "bias", None)
    return None if ir.is_variable(bias) else ir.tensor_of(node.args[1])


def as_binary(weight: Tensor) -> Binary | None:
    """The weight as signs times scale, None if it takes more values than ±s in some channel."""
    if not weight.is_floating_point() or weight.numel() == 0 or weight.dim() < 2:
        return None
    rows = weight.detach().double().flatten(1)
    sizes = rows.abs()
    zeros = sizes == 0
    count = int(zeros.sum())
    if count > _FEW * rows.numel() or not bool(rows.isfinite().all()):
        return None
    scale = sizes.sum(1) / (rows.shape[1] - zeros.sum(1)).clamp_min(1)
    if rows.shape[1] == 1 and not bool((scale == 1).all()):
        return None  # one weight alone is ±s whatever it is
    off = torch.where(zeros, 0, (sizes - scale[:, None]).abs())
    if bool((off > _ROUNDING * scale[:, None]).any()):
        return None
    note = ""
    if bool((off > 4 * torch.finfo(weight.dtype).eps * scale[:, None]).any()):
        note = f"weights are ±s up to {float((off / scale[:, None]).max()):.1g} of s"
    if count:
        note += f"{'; ' if note else ''}{count} weights are 0 and count as +s"
    signs = torch.where(weight >= 0, 1, -1).to(torch.float32)
    scale = scale.float()
    return Binary(signs, None if bool((scale == 1).all()) else scale, note)


Geometry = tuple[object, ...]


def _geometry(node: Node) -> Geometry | str:
    """The arguments of `ir.product` behind the weight, or why there are none."""
    if node.target == aten.linear.default:
        return ()
    weight = ir.tensor_of(node.args[1])
    assert weight is not None
    stride, padding, dilation, transposed, _, groups = node.args[3:9]
    if transposed:
        return "transposed convolutions have no packed kernels"
    if weight.dim() != 4:
        return "only linear layers and 2-d convolutions have packed kernels"
    # One number for both axes is a list of one in some calls.
    stride, padding, dilation = (
        tuple(sizes) * (2 // len(sizes)) for sizes in (stride, padding, dilation)
    )
    return stride, padding, dilation, groups, 0


def _padding_of_signs(
    graph: Graph, node: Node, geometry: Geometry, signs: dict[Node, Node | None]
) -> tuple[Node, Geometry]:
    """The input of a product, its sign if it is ±1, with a padding in front of it taken in."""
    input = node.args[0]
    assert isinstance(input, Node)
    if geometry and ir.calls(input, aten.constant_pad_nd.default) and not any(geometry[1]):  # type: ignore[arg-type]
        inner, sizes = input.args[:2]
        value = ir.argument(input, 2, "value", 0)
        found = _as_sign(graph, inner, signs)
        if found is not None and value in (-1, 0, 1) and _is_symmetric(sizes):
            stride, _, dilation, groups, _ = geometry
            padding = (sizes[2], sizes[0])
            return found, (stride, padding, dilation, groups, int(value))
    return _as_sign(graph, input, signs) or input, geometry


def _is_symmetric(sizes: list[int]) -> bool:
    return len(sizes) == 4 and sizes[0] == sizes[1] >= 0 and sizes[2] == sizes[3] >= 0


def _rewrite(graph: Graph, node: Node, input: Node, binary: Binary, geometry: Geometry) -> None:
    """Product, scale and bias in place of the node."""
    bias = ir.argument(node, 2, "bias", None)
    ones = (1,) * (len(node.meta["shape"]) - 2) if geometry else ()
    dtype = node.meta["dtype"]
    with graph.inserting_before(node):
        weight = ir.constant(graph, binary.signs.to(dtype), node)
        rounds = binary.scale is not None or bias is not None
        out = ir.call(
            graph, ir.product, (input, weight, *geometry), node, note=binary.note, rounds=rounds
        )
        if binary.scale is not None:
            scale = ir.constant(graph, binary.scale.view(-1, *ones).to(dtype), node)
            out = ir.call(graph, aten.mul.Tensor, (out, scale), node)
        if bias is not None:
            values = ir.tensor_of(bias)
            assert values is not None
            bias = ir.constant(graph, values.view(-1, *ones), node)
            out = ir.call(graph, aten.add.Tensor, (out, bias), node)
    ir.replace(node, out)
    graph.erase_node(node)


# --- signs ----------------------------------------------------------------------------------------


def _as_sign(graph: Graph, node: Node, known: dict[Node, Node | None]) -> Node | None:
    """A `sign` node with the value of the node, None if that is something else than ±1."""
    if node in known:
        return known[node]
    found = None
    if ir.calls(node, ir.sign):
        found = node
    elif (source := _source_of_sign(node)) is not None:
        variable, note = source
        same = [user for user in variable.users if ir.calls(user, ir.sign)]
        if same:
            found = same[0]
        else:
            with graph.inserting_after(variable):
                found = ir.call(
                    graph, ir.sign, (variable,), node, note=note, call=node.meta.get("call")
                )
    else:
        found = _sign_of_moved(graph, node, known)
    known[node] = found
    return found


def _sign_of_moved(graph: Graph, node: Node, known: dict[Node, Node | None]) -> Node | None:
    """Signs that are moved, or the largest of which is taken, are signs of what is moved."""
    if ir.calls(node, aten.cat.default):
        parts = list(node.args[0])
    elif ir.calls(node, *_MOVES):
        parts = [node.args[0]]
    else:
        return None
    if not all(ir.is_variable(part) for part in parts):
        return None
    signs = [_as_sign(graph, part, known) for part in parts]
    if None in signs:
        return None
    sources = [sign.args[0] for sign in signs if sign is not None]
    with graph.inserting_before(node):
        moved = graph.node_copy(node)
        moved.args = (sources if ir.calls(node, aten.cat.default) else sources[0], *node.args[1:])
        return ir.call(graph, ir.sign, (moved,), node, note="", call=node.meta.get("call"))


# The largest of several signs is the sign of the largest.
_MOVES = (ir.select, ir.flatten, aten.max_pool2d.default, aten.reshape.default)


def _source_of_sign(node: Node) -> tuple[Node, str] | None:
    """The value whose sign the node is, and what to say of it."""
    frontier = {node}
    region: list[Node] = []
    for _ in range(_DEEPEST):
        latest = max(frontier)  # in the order of the graph
        if not _is_elementwise(latest):
            return None
        frontier.remove(latest)
        region.insert(0, latest)
        frontier.update(_variables(latest))
        if len(frontier) == 1:
            (source,) = frontier
            note = _why_sign(region, source)
            if note == "" or note is not None and source.meta.get("zeros", 0) <= _FEW_ZEROS:
                return source, note
    return None


def _is_elementwise(node: Node) -> bool:
    target = getattr(node.target, "overloadpacket", None)
    return node.op == "call_function" and target in _ELEMENTWISE


def _variables(node: Node) -> Iterable[Node]:
    return [n for n in node.all_input_nodes if ir.is_variable(n)]


@torch.no_grad()
def _why_sign(region: list[Node], source: Node) -> str | None:
    """What to say of a region that computes the sign of its source, None if it does not."""
    dtype = source.meta["dtype"]
    if not dtype.is_floating_point:
        return None
    values: dict[Node, object] = {}
    for node in region:
        for constant in node.all_input_nodes:
            tensor = ir.tensor_of(constant)
            if tensor is not None:
                if tensor.numel() != 1:
                    return None  # a shift or slope of its own for each channel: not a bare sign
                values[constant] = tensor.reshape(())
    device = next((t.device for t in values.values() if isinstance(t, Tensor)), None)
    probes = torch.tensor(
        [*_PROBES, *(-p for p in _PROBES), _TINY, -_TINY, 0.0, -0.0], dtype=dtype, device=device
    )
    values[source] = probes
    for node in region:
        values[node] = ir.compute(node, values)
    found = values[region[-1]]
    if not isinstance(found, Tensor) or found.shape != probes.shape:
        return None
    found, probes = found.double(), probes.double()
    # What an estimator adds and takes away again is rounded in the size of its argument.
    noise = 4 * torch.finfo(dtype).eps * probes.abs().clamp_min(1)
    # +0.0 is no less than 0, and a tiny number may be 0 in half precision.
    off = (found - torch.where(probes >= 0, 1, -1)).abs() > noise
    if bool(off[:-4].any()):
        return None
    if bool(off[-4:-2].any()) and bool(probes[-4]):
        return f"the sign of values around 0 is {float(found[-2]):g} in the model"
    if bool(off[-2:].any()):
        return f"the sign of 0 is {float(found[-2]):g} in the model and +1 on bits"
    return ""
