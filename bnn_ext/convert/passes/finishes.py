"""What follows a layer channel by channel joins it: scale, bias, BatchNorm, residual, activation.

Such calls become the steps of a `finish`, which the layer's kernel applies to its sums before they
leave the registers. A call joins only if the step gives the same float as the call, bit for bit, on
probes; so the network stays exact. In half precision a call computes in float32 and rounds its
result, which is one more step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten

# What calls give, and the step that rounds float32 to it.
_ROUNDINGS = {torch.float32: None, torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Step(NamedTuple):
    """A step of `bnn_ext.ops.conv2d_fused`: operands are constants [C] or one node."""

    operation: str
    operands: tuple[Tensor | Node, ...]


def join_finishes(graph: Graph) -> None:
    """Rewrites the graph in place."""
    # Layers on bits first: the sum of one and another value, whichever is there earlier, joins it.
    for node in sorted(graph.nodes, key=_is_on_bits, reverse=True):
        if _is_start(node):
            _grow(graph, node)
    graph.eliminate_dead_code()


def _is_on_bits(node: Node) -> bool:
    return ir.calls(node, ir.product) and ir.holds_signs(node.args[0])


def _is_start(node: Node) -> bool:
    """Whether the node gives maps or rows of floats that nothing has joined yet.

    Behind a product the steps join its kernel, behind any other call one pass over memory.
    """
    shape = node.meta.get("shape", ())
    return (
        node.op == "call_function"
        and node.target not in (ir.sign, ir.compare, ir.pool)
        and len(shape) in (2, 4)
        and node.meta["dtype"] in _ROUNDINGS
        and bool(node.users)
    )


def _grow(graph: Graph, start: Node) -> None:
    """Takes the calls behind the node in, one after the other."""
    steps = _rounded_sums(start)
    absorbed: list[Node] = []
    end = start
    while len(end.users) == 1:
        (user,) = end.users
        found = _steps(user, end)
        if found is None:
            break
        steps += found
        absorbed.append(user)
        end = user
    if not absorbed:
        return
    with graph.inserting_before(end):
        operands = [
            ir.constant(graph, operand, end) if isinstance(operand, Tensor) else operand
            for step in steps
            for operand in step.operands
        ]
        operations = tuple(step.operation for step in steps)
        joined = ir.call(
            graph,
            ir.finish,
            (start, operations, end.meta["dtype"], *operands),
            end,
            absorbed=tuple(absorbed),
        )
    ir.replace(end, joined)
    graph.eliminate_dead_code()


def _rounded_sums(start: Node) -> list[Step]:
    """The step that rounds sums of signs, which a kernel has as integers, where they need it."""
    dtype = start.meta["dtype"]
    if _ROUNDINGS[dtype] is None or not _is_on_bits(start):  # others give their sums rounded
        return []
    weight = ir.tensor_of(start.args[1])
    assert weight is not None
    exact_up_to = 2 / torch.finfo(dtype).eps
    return _rounding(dtype) if weight[0].numel() > exact_up_to else []


def _rounding(dtype: torch.dtype) -> list[Step]:
    name = _ROUNDINGS[dtype]
    return [] if name is None else [Step(name, ())]


def _steps(node: Node, input: Node) -> list[Step] | None:
    """The call as steps on its input, None if it cannot be."""
    if node.op != "call_function" or node.meta.get("shape") != input.meta["shape"]:
        return None
    dtype = node.meta["dtype"]
    if dtype not in _ROUNDINGS:
        return None
    variables = [n for n in node.all_input_nodes if ir.is_variable(n)]
    if variables != [input]:
        other = _other_summand(node, input, variables)
        return None if other is None else [Step("add", (other,)), *_rounding(dtype)]
    channels = node.meta["shape"][1]
    for steps in _candidates(node, input, channels):
        clips = all(step.operation in ("maximum", "minimum") for step in steps)
        if not clips or dtype != input.meta["dtype"]:
            steps = [*steps, *_rounding(dtype)]
        if _same(node, input, steps):
            return steps
    return None


def _other_summand(node: Node, input: Node, variables: list[Node]) -> Node | None:
    """The second summand of a plain sum of two maps or rows."""
    if not ir.calls(node, aten.add.Tensor) or node.kwargs.get("alpha", 1) != 1:
        return None
    if len(variables) != 2:
        return None
    (other,) = (n for n in variables if n is not input)
    same = other.meta.get("shape") == input.meta["shape"]
    return other if same and other.meta["dtype"] in _ROUNDINGS else None


def _candidates(node: Node, input: Node, channels: int) -> Iterator[list[Step]]:
    """Steps that might be the call."""
    target, args = node.target, node.args
    if target == aten._to_copy.default and set(node.kwargs) <= {"dtype"}:
        yield []

    def vector(value: object) -> Tensor | None:
        """A number or constant as one float per channel."""
        if isinstance(value, (int, float)):
            return torch.full((channels,), float(value), device=node.meta["device"])
        tensor = ir.tensor_of(value)
        if tensor is None or tensor.numel() not in (1, channels):
            return None
        return tensor.flatten().float().expand(channels).contiguous()

    def one(operation: str, value: object) -> Iterator[list[Step]]:
        values = vector(value)
        if values is not None:
            yield [Step(operation, (values,))]

    if target in (aten.mul.Tensor, aten.add.Tensor, aten.mul.Scalar, aten.add.Scalar):
        operation = "multiply" if target in (aten.mul.Tensor, aten.mul.Scalar) else "add"
        yield from one(operation, args[1] if args[0] is input else args[0])
    elif target in (aten.sub.Tensor, aten.sub.Scalar) and args[0] is input:
        values = vector(args[1])
        if values is not None:
            yield [Step("add", (-values,))]
    elif target in (aten.div.Tensor, aten.div.Scalar) and args[0] is input:
        yield from one("divide", args[1])
    elif target == aten.neg.default:
        yield from one("multiply", -1.0)
    elif target == aten.relu.default:
        yield from one("maximum", 0.0)
    elif target in (aten.hardtanh.default, aten.clamp.default):
        low = ir.argument(node, 1, "min_val", ir.argument(node, 1, "min", None))
        high = ir.argument(node, 2, "max_val", ir.argument(node, 2, "max", None))
        if target == aten.hardtanh.default:
            low, high = -1.0 if low is None else low, 1.0 if high is None else high
        steps = []
        for operation, limit in (("maximum", low), ("minimum", high)):
            if limit is not None:
                values = vector(limit)
                if values is None:
                    return
                steps.append(Step(operation, (values,)))
        yield steps
    elif target == aten.leaky_relu.default:
        yield from one("prelu", ir.argument(node, 1, "negative_slope", 0.01))
    elif target == aten.prelu.default:
        yield from one("prelu", args[1])
    elif target == aten.batch_norm.default and not args[5] and args[3] is not None:
        yield from _batch_norm(node)


def _batch_norm(node: Node) -> Iterator[list[Step]]:
    """Torch's ways, which depend on device and memory format.

    On a CPU it is `x * factor + addend`, rounded once where there is such an instruction; on CUDA
    the mean is taken off first.
    """
    tensors = (ir.tensor_of(value) for value in node.args[1:5])
    weight, bias, mean, variance = (None if t is None else t.float() for t in tensors)
    assert mean is not None and variance is not None
    eps = node.args[7]
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    for inverse in (torch.rsqrt(variance + eps), 1 / torch.sqrt(variance + eps)):
        factor = weight * inverse
        fused = torch.addcmul(bias.double(), mean.double(), factor.double(), value=-1).float()
        yield [Step("multiply_add", (factor, fused))]
        addend = bias - mean * factor
        yield [Step("multiply_add", (factor, addend))]
        yield [Step("multiply", (factor,)), Step("add", (addend,))]
        for first, second in ((weight, inverse), (inverse, weight)):
            centered = [Step("add", (-mean,)), Step("multiply", (first,))]
            yield [*centered, Step("multiply_add", (second, bias))]


@torch.no_grad()
def _same(node: Node, input: Node, steps: list[Step]) -> bool:
    """Whether the steps give what the call gives, bit for bit, on probes.

    These have its shape and memory format, since torch rounds otherwise in another one.
    """
    channels, spatial = input.meta["shape"][1], len(input.meta["shape"]) - 2
    shape = (2, channels, 8, 8) if spatial else (128, channels)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[1])[
        torch.randperm(shape[1], generator=generator)
    ].view(-1, *[1] * (len(shape) - 2))
    integers = torch.randint(-4096, 4097, shape, generator=generator).float()
    probes = torch.cat([probes, integers, torch.zeros(shape)]).to(input.meta["device"])
    reads = node.meta.get("reads")
    if reads is torch.channels_last:
        probes = probes.contiguous(memory_format=reads)
    elif reads is torch.preserve_format:
        probes = torch.cat([probes, probes], 1)[:, : shape[1]]
    probes = probes.to(input.meta["dtype"])
    known = {n: n.meta["tensor"] for n in node.all_input_nodes if not ir.is_variable(n)}
    known[input] = probes
    expected = ir.compute(node, known).float()
    operands = [operand for step in steps for operand in step.operands]
    found = ir.finish(probes, [step.operation for step in steps], torch.float32, *operands)
    return bool(torch.equal(expected, found)) and bool(
        (expected.signbit() == found.signbit()).all()
    )
