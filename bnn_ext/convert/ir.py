"""The graph that the passes work on: `torch.fx` nodes that can be run at any time.

Besides ATen calls there are the operators below, each defined by what it computes on floats of
±1, so that a graph gives the same before and after each pass. What runs on packed bits in the end
is decided last, in lower.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node, map_arg

from bnn_ext import reference
from bnn_ext.nn.packed import is_channels_last
from bnn_ext.ops.epilogue import operand_count

aten = torch.ops.aten

# --- operators ------------------------------------------------------------------------------------


def sign(x: Tensor) -> Tensor:
    """±1 in the dtype of x."""
    return reference.sign(x)


def compare(x: Tensor, threshold: Tensor, rising: Tensor) -> Tensor:
    """+1 where `x >= threshold` in a rising channel or `x <= threshold` in another, else -1.

    In the dtype of x; channels are dimension 1; threshold and rising (bool) have shape [C].
    """
    threshold, rising = per_channel(threshold, x), per_channel(rising, x)
    bits = torch.where(rising, x >= threshold, x <= threshold)
    return torch.where(bits, 1.0, -1.0).to(x.dtype)


def product(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
    pad_value: int = 0,
) -> Tensor:
    """Sums of x times a weight of ±1: linear for a matrix, a convolution for four dimensions."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    if pad_value:
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=pad_value)
        padding = (0, 0)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def select(x: Tensor, index: Tensor) -> Tensor:
    """Channel j of the result is channel index[j] of x; channels are dimension 1."""
    return x.index_select(1, index.to(x.device))


def flatten(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, C * H * W], in this order."""
    return x.flatten(1)


def pool(
    x: Tensor,
    falling: Tensor | None,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Tensor:
    """Max-pool of ±1, the minimum in falling channels (bool [C])."""
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    if falling is None:
        return F.max_pool2d(x, *window)
    turn = torch.where(falling, -1.0, 1.0).view(-1, 1, 1)
    return F.max_pool2d(x * turn, *window) * turn


def finish(x: Tensor, operations: Sequence[str], dtype: torch.dtype, *operands: Tensor) -> Tensor:
    """The steps of `bnn_ext.ops.conv2d_fused` one after the other, channels in dimension 1."""
    given = iter(operands)
    x = x.float()
    for operation in operations:
        step = [next(given) for _ in range(operand_count(operation))]
        shaped = (o if o.dim() == x.dim() else per_channel(o, x) for o in step)
        x = reference.apply_step(x, operation, *shaped)
    return x.to(dtype)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] in a shape that meets the channels of x, its dimension 1."""
    return values.view(-1, *[1] * (x.dim() - 2))


# --- nodes ----------------------------------------------------------------------------------------


def tensor_of(value: Any) -> Tensor | None:
    """The value of a constant node, None for everything else."""
    return value.meta.get("tensor") if isinstance(value, Node) else None


def is_variable(value: Any) -> bool:
    """Whether it is a node that depends on the inputs."""
    return isinstance(value, Node) and value.op != "get_attr"


def calls(node: Any, *targets: Callable[..., Any]) -> bool:
    """Whether it is a node that calls one of the targets."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def holds_signs(value: Any) -> bool:
    """Whether a node's ±1 are kept as bits: signs and comparisons, and what only moves them."""
    if calls(value, sign, compare, pool):
        return True
    if calls(value, select, flatten):
        return holds_signs(value.args[0])
    return calls(value, aten.cat.default) and all(map(holds_signs, value.args[0]))


def argument(node: Node, index: int, name: str, default: Any) -> Any:
    """An argument that may be given by position, by name or not at all."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def constant(graph: Graph, tensor: Tensor, like: Node) -> Node:
    """A new constant, written down for the same layer as `like`."""
    node = graph.create_node("get_attr", "constant")
    node.meta = {"layer": like.meta["layer"], "kind": like.meta["kind"], "tensor": tensor}
    node.meta |= {"shape": tuple(tensor.shape), "dtype": tensor.dtype, "device": tensor.device}
    node.meta["channels_last"] = is_channels_last(tensor)
    return node


def call(
    graph: Graph, target: Callable[..., Any], args: tuple[Any, ...], like: Node, **meta: Any
) -> Node:
    """A new call whose result is described like that of `like`, but for `meta`."""
    node = graph.call_function(target, args)
    node.meta = {key: like.meta[key] for key in _DESCRIPTION if key in like.meta} | meta
    return node


_DESCRIPTION = (
    "shape",
    "dtype",
    "device",
    "channels_last",
    "reads",
    "layer",
    "kind",
)


def replace(node: Node, by: Node) -> None:
    """Puts a call with the same result in the place of another."""
    by.meta |= {key: node.meta[key] for key in ("call", "zeros") if key in node.meta}
    node.replace_all_uses_with(by)


# --- running --------------------------------------------------------------------------------------


@torch.no_grad()
def run(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The graph's outputs."""
    values: dict[Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        if node.op == "output":
            return list(map_arg(node.args[0], lambda n: values[n]))
        if node.op == "placeholder":
            values[node] = next(given).clone()
        elif node.op == "get_attr":
            values[node] = node.meta["tensor"]
        else:
            values[node] = compute(node, values)
    raise AssertionError("a graph has an output")


def compute(node: Node, values: dict[Node, Any]) -> Any:
    """The result of a call, from those of its arguments."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*args, **kwargs)
