"""What stands between a layer and the next sign: calls that are monotone in each channel.

A chain is read from its end, the sign, towards its source, and moves along: through a max-pool,
through a selection or concatenation of channels. It is a function of one number per channel, and is
evaluated by running the very calls of the model on these numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten

Evaluate = Callable[[Tensor], Tensor]

# Increasing whatever their other arguments, which are numbers.
_INCREASING = {
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.sign.default,
    aten.round.default,
    aten.exp.default,
    aten._to_copy.default,
}


def direction(node: Node) -> Tensor | str:
    """+1 or -1 for each channel in which the call never decreases or never increases.

    Returns:
        `[channels]`, or words that say why the call is no such function of one number.
    """
    name = _name(node)
    inputs = [n for n in node.all_input_nodes if ir.is_variable(n)]
    if node.op != "call_function" or len(inputs) != 1:
        return f"{name} is not a function of one value"
    (input,) = inputs
    shape = node.meta.get("shape")
    if shape is None or shape != input.meta.get("shape") or len(shape) < 2:
        return f"{name} changes the shape"
    if not all(map(_is_per_channel, node.all_input_nodes)):
        return f"{name} has parameters for each position"
    slope = _slope(node, input)
    if slope is None:
        return f"{name} is not known to be monotone in each channel"
    if isinstance(slope, str):
        return slope
    return slope.flatten().expand(shape[1])


def _slope(node: Node, input: Node) -> Tensor | str | None:
    """The sign of the slope, one or `[channels]`; words where it is both; None if unknown."""
    up = torch.ones(1)
    target, args = node.target, node.args
    if target in _INCREASING:
        if target == aten._to_copy.default and not node.meta["dtype"].is_floating_point:
            return None
        return up
    if target in (aten.neg.default, aten.rsub.Scalar, aten.rsub.Tensor):
        return -up if args[0] is input else up
    if target in (aten.add.Tensor, aten.add.Scalar, aten.maximum.default, aten.minimum.default):
        return up if _alpha(node) > 0 else None
    if target in (aten.sub.Tensor, aten.sub.Scalar):
        return (up if args[0] is input else -up) if _alpha(node) > 0 else None
    if target in (aten.mul.Tensor, aten.mul.Scalar):
        return _sign_of(args[1] if args[0] is input else args[0])
    if target in (aten.div.Tensor, aten.div.Scalar) and args[0] is input:
        return _sign_of(args[1])
    if target == aten.leaky_relu.default:
        slope = ir.argument(node, 1, "negative_slope", 0.01)
        return up if slope >= 0 else f"{_name(node)} has a negative slope ({slope:.4g})"
    if target == aten.prelu.default:
        slopes = ir.tensor_of(args[1])
        if slopes is None:
            return None
        if bool((slopes >= 0).all()):
            return up
        worst = int((~(slopes >= 0)).nonzero()[0])
        return f"{_name(node)} has a negative slope ({float(slopes[worst]):.4g} in channel {worst})"
    if target == aten.batch_norm.default:
        if args[5] or args[3] is None:
            return f"{_name(node)} keeps no running statistics, so each batch differs"
        return up if args[1] is None else _sign_of(args[1])
    return None


def _name(node: Node) -> str:
    """The call as a user knows it: the class of its module, or what it calls."""
    kind = node.meta.get("kind", "")
    if kind.startswith(("BatchNorm", "PReLU", "LeakyReLU", "Hardtanh", "ReLU", "GELU", "SiLU")):
        return str(kind)
    return str(getattr(node.target, "_schema", node).name).removeprefix("aten::")


def _alpha(node: Node) -> float:
    return float(node.kwargs.get("alpha", 1))


def _sign_of(value: Any) -> Tensor | None:
    """Of a number or a constant: -1 where it is negative, +1 elsewhere."""
    if isinstance(value, (int, float)):
        value = torch.tensor([float(value)])
    elif isinstance(value, Node):
        value = ir.tensor_of(value)
    if value is None or bool(value.isnan().any()):
        return None
    return torch.where(value.cpu() < 0, -1.0, 1.0)


def _is_per_channel(node: Node) -> bool:
    """Whether a constant has one value, or one for each channel of what it meets."""
    tensor = ir.tensor_of(node)
    if tensor is None or tensor.numel() == 1:
        return True
    user_shape = next(iter(node.users)).meta["shape"]
    if tensor.dim() == 1 and all(
        ir.calls(user, aten.batch_norm.default, aten.prelu.default) for user in node.users
    ):
        return True
    channels = (1,) * (len(user_shape) - tensor.dim()) + tuple(tensor.shape)
    return channels == (1, user_shape[1], *[1] * (len(user_shape) - 2))


@dataclass(frozen=True)
class Chain:
    """Calls between a value and the sign of what becomes of it.

    Attributes:
        evaluate: from one value per channel, `[channels]`, to what the sign is taken of.
        slope: +1 or -1 per channel.
        nodes: the calls.
        alike: whether all channels are treated alike.
    """

    evaluate: Evaluate
    slope: Tensor
    nodes: tuple[Node, ...] = ()
    alike: bool = True

    @classmethod
    def at_sign(cls, channels: int) -> Chain:
        """The empty chain."""
        return cls(lambda values: values, torch.ones(channels))

    def behind(self, node: Node, slope: Tensor) -> Chain:
        """This chain with a call of that slope in front."""

        def evaluate(values: Tensor) -> Tensor:
            return self.evaluate(apply(node, values))

        alike = self.alike and all(
            t.numel() == 1 for t in map(ir.tensor_of, node.all_input_nodes) if t is not None
        )
        return replace(
            self,
            evaluate=evaluate,
            slope=self.slope * slope,
            nodes=(node, *self.nodes),
            alike=alike,
        )

    def behind_select(self, index: Tensor, channels: int) -> Chain | None:
        """This chain in front of a selection out of so many channels, each used once at most."""
        if len(index.unique()) != len(index):
            return None

        def evaluate(values: Tensor) -> Tensor:
            chosen = self.evaluate(values[index])
            return values.to(chosen).index_copy(0, index, chosen)

        slope = torch.ones(channels).index_copy(0, index, self.slope)
        return replace(self, evaluate=evaluate, slope=slope, alike=False)

    def behind_flatten(self, channels: int) -> Chain | None:
        """This chain in front of a flattened map, if all of its positions are treated alike."""
        if not self.alike:
            return None
        return replace(self, slope=self.slope[:1].expand(channels))

    def of_part(self, first: int, channels: int) -> Chain:
        """This chain for so many channels of a concatenation."""
        total = len(self.slope)

        def evaluate(values: Tensor) -> Tensor:
            padded = torch.zeros(total, dtype=values.dtype, device=values.device)
            padded[first : first + channels] = values
            return self.evaluate(padded)[first : first + channels]

        slope = self.slope[first : first + channels]
        return replace(self, evaluate=evaluate, slope=slope)


@torch.no_grad()
def apply(node: Node, values: Tensor) -> Tensor:
    """A call on one value per channel, `[channels]`, in the shape of a map or row of the model."""
    (input,) = (n for n in node.all_input_nodes if ir.is_variable(n))
    shape = (1, -1) + (1,) * (len(input.meta["shape"]) - 2)
    known: dict[Node, Any] = {
        n: n.meta["tensor"] for n in node.all_input_nodes if not ir.is_variable(n)
    }
    known[input] = values.to(input.meta["device"], input.meta["dtype"]).view(shape)
    out = ir.compute(node, known)
    assert isinstance(out, Tensor)
    return out.flatten()
