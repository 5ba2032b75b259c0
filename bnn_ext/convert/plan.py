"""The steps of a network in as few calls as possible.

Nodes that run on our operators one after the other become one `bnn_ext.ops.Sequence`: at batch 1 a
small layer takes as long as the way to its kernel. Calls of torch stand between sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnn_ext import ops
from bnn_ext.nn.packed import OperatorLayer


@dataclass
class Node:
    """One step: a module, the names of the values that it takes, and of those that it gives."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Step:
    """One call, of a sequence or of a module that is none of ours.

    Attributes:
        run: takes the values named `inputs` in a list and gives those named `outputs` in a list.
        dead: names of the values that nothing needs afterwards.
    """

    run: Callable[[list[Any]], Sequence[Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...] = ()


def plan(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Step]:
    """Puts nodes together.

    Args:
        nodes: in running order.
        outputs: names of the values that the network gives.
    """
    needed = set(outputs)
    steps: list[Step] = []
    group: list[Node] = []
    for node in reversed(nodes):
        if runs_in_sequence(node.module):
            group.insert(0, node)
            continue
        if group:
            steps.append(_sequence(group, needed))
            group = []
        steps.append(_step(_caller(node), node.inputs, node.outputs, needed))
    if group:
        steps.append(_sequence(group, needed))
    return steps[::-1]


def runs_in_sequence(module: nn.Module) -> bool:
    """Whether the module is nothing but one of our operators."""
    if not isinstance(module, OperatorLayer):
        return False
    return not (module.gives_map and getattr(module, "channels_last", True) is False)


def _step(
    run: Callable[[list[Any]], Sequence[Any]],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    needed: set[str],
) -> Step:
    """A step in front of those that need the values in `needed`, to which it adds its own."""
    dead = tuple(name for name in dict.fromkeys((*inputs, *outputs)) if name not in needed)
    needed.update(inputs)
    return Step(run, inputs, outputs, dead)


def _caller(node: Node) -> Callable[[list[Any]], Sequence[Any]]:
    def call(values: list[Any]) -> Sequence[Any]:
        results = node.module(*values)
        return (results,) if len(node.outputs) == 1 else results

    return call


def _sequence(nodes: Sequence[Node], needed: set[str]) -> Step:
    made = {name for node in nodes for name in node.outputs}
    inputs = tuple(
        dict.fromkeys(name for node in nodes for name in node.inputs if name not in made)
    )
    outputs = tuple(name for node in nodes for name in node.outputs if name in needed)
    writer = _Calls()
    for node in nodes:
        writer.add(node)
    for name in outputs:
        writer.as_in_torch(name)
    return _step(ops.Sequence(inputs, writer.calls, outputs), inputs, outputs, needed)


class _Calls:
    """Nodes as calls. The operators have channels last: maps are turned where that is needed."""

    def __init__(self) -> None:
        self.calls: list[ops.Call] = []
        self.turned: dict[str, str] = {}  # names of maps -> their names with channels last
        self.only_turned: set[str] = set()

    def add(self, node: Node) -> None:
        layer = node.module
        assert isinstance(layer, OperatorLayer)
        inputs = [
            self.channels_last(name) if i in layer.map_inputs else self.as_in_torch(name)
            for i, name in enumerate(node.inputs)
        ]
        operator, arguments = layer.call(inputs)
        results: list[str | None] = list(node.outputs)
        if "steps" in arguments:  # such operators have places for floats and for bits
            names = iter(node.outputs)
            results = [
                None if arguments[result] is None else next(names)
                for result in ("dtype", "threshold")
            ]
        if layer.gives_map and results[0] is not None:
            name = results[0]
            results[0] = self.turned[name] = f"{name} [N, H, W, C]"
            self.only_turned.add(name)
        self.calls.append(ops.Call(operator, arguments, tuple(results)))

    def channels_last(self, name: str) -> str:
        """The map as [N, H, W, C]."""
        if name not in self.turned:
            self.turned[name] = f"{name} [N, H, W, C]"
            self._permute(name, (0, 2, 3, 1), self.turned[name])
        return self.turned[name]

    def as_in_torch(self, name: str) -> str:
        """The value, a map as [N, C, H, W]."""
        if name in self.only_turned:
            self.only_turned.remove(name)
            self._permute(self.turned[name], (0, 3, 1, 2), name)
        return name

    def _permute(self, source: str, dims: tuple[int, ...], name: str) -> None:
        self.calls.append(ops.Call("permute", {"input": source, "dims": dims}, (name,)))
