"""The converted network: named nodes, each a module with inputs and outputs, run in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert.plan import Node, Step, plan
from bnn_ext.convert.report import Report

INPUT = "input"


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
        self.eval().requires_grad_(False)
        self._plan: list[Step] = plan(self.nodes, self.outputs)

    def forward(self, *inputs: Tensor) -> Any:
        if len(inputs) != len(self.inputs):
            raise TypeError(f"the network takes {len(self.inputs)} inputs, found {len(inputs)}")
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for step in self._plan:
            results = step.run([values[name] for name in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
            for name in step.dead:
                del values[name]
        if isinstance(self.structure, str):  # at once: a small network takes not much longer
            return values[self.structure]
        return pytree.tree_unflatten([values[name] for name in self.outputs], self._spec)

    def values(self, *inputs: Tensor) -> Iterator[tuple[str, Any]]:
        """Runs node by node and gives the name of each value with the value."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for node, module in zip(self.nodes, self.steps, strict=True):
            result = module(*[values[name] for name in node.inputs])
            results = (result,) if len(node.outputs) == 1 else result
            values.update(zip(node.outputs, results, strict=True))
            yield from ((name, values[name]) for name in node.outputs)

    def extra_repr(self) -> str:
        return f"nodes={[node.name for node in self.nodes]}"

    # --- the plan holds the tensors of the steps, and follows when they are replaced --------------

    def _apply(self, fn: Any, recurse: bool = True) -> PackedNetwork:
        super()._apply(fn, recurse)
        self._plan = plan(self.nodes, self.outputs)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self._plan = plan(self.nodes, self.outputs)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = plan(self.nodes, self.outputs)
