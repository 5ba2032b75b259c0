"""The converted network: named nodes, each a module with inputs and outputs, run in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert.report import Report

INPUT = "input"


@dataclass
class Node:
    """One step: a module, the names of the values that it takes, and of those that it gives."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Origin:
    """Where a value of the network comes from.

    Attributes:
        call: name of the call in the graph that `capture` makes of the model.
        bits: whether the value is the packed signs of the call's result.
        order: packed channel j is channel order[j] of the result; None if they lie in order.
    """

    call: str
    bits: bool
    order: Tensor | None = None


class PackedNetwork(nn.Module):
    """What `bnn_ext.convert` returns: same inputs and outputs as the original model.

    Attributes:
        nodes: the steps in running order.
        inputs: names of the inputs.
        outputs: names of the values that are given back.
        structure: how these are arranged: a name, or lists, tuples and dicts of them.
        report: what became of every layer of the original.
        rounds: whether some sums of real values round otherwise than in the original.
        origins: for values of the network where they come from; a loaded network does not know.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[str],
        structure: Any,
        report: Report,
        rounds: bool = False,
        origins: dict[str, Origin] | None = None,
    ) -> None:
        super().__init__()
        self.nodes = list(nodes)
        self.inputs = tuple(inputs)
        self.structure = structure
        self.outputs, self._spec = pytree.tree_flatten(structure)
        self.report = report
        self.rounds = rounds
        self.origins = origins or {}
        self.steps = nn.ModuleList(node.module for node in nodes)
        self._dead = _dead_after(self.nodes, self.inputs, self.outputs)
        self.eval().requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        if len(inputs) != len(self.inputs):
            raise TypeError(f"the network takes {len(self.inputs)} inputs, found {len(inputs)}")
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for node, module, dead in zip(self.nodes, self.steps, self._dead, strict=True):
            _run(node, module, values)
            for name in dead:
                del values[name]
        return pytree.tree_unflatten([values[name] for name in self.outputs], self._spec)

    def values(self, *inputs: Tensor) -> Iterator[tuple[str, Any]]:
        """Runs node by node and gives the name of each value with the value."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for node, module in zip(self.nodes, self.steps, strict=True):
            _run(node, module, values)
            yield from ((name, values[name]) for name in node.outputs)

    def extra_repr(self) -> str:
        return f"nodes={[node.name for node in self.nodes]}"


def _run(node: Node, module: nn.Module, values: dict[str, Any]) -> None:
    result = module(*[values[name] for name in node.inputs])
    if len(node.outputs) == 1:
        values[node.outputs[0]] = result
    else:
        values.update(zip(node.outputs, result, strict=True))


def _dead_after(
    nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]
) -> list[list[str]]:
    """For each node the values that nothing needs after it."""
    seen = set(outputs)
    dead = []
    for node in reversed(nodes):
        names = dict.fromkeys((*node.inputs, *node.outputs))
        dead.append([name for name in names if name not in seen])
        seen.update(names)
    return dead[::-1]
