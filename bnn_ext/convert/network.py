"""The converted network: named nodes, each a module with inputs, run in order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bnn_ext.convert.report import Report

INPUT = ""  # the name of the network's own input, which no layer can have


@dataclass
class Node:
    """One step: a module and the names of the nodes whose outputs it takes."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


class PackedNetwork(nn.Module):
    """What `bnn_ext.convert` returns: same inputs and outputs as the original model.

    Attributes:
        nodes: the steps in running order; the last one gives the output.
        report: what became of every layer of the original.
    """

    def __init__(self, nodes: list[Node], report: Report) -> None:
        super().__init__()
        self.nodes = nodes
        self.report = report
        self.steps = nn.ModuleList(node.module for node in nodes)
        self.eval().requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        values = {INPUT: input}
        name = INPUT
        for node, module in zip(self.nodes, self.steps, strict=True):
            name = node.name
            values[name] = module(*(values[source] for source in node.inputs))
        return values[name]

    def extra_repr(self) -> str:
        return f"nodes={[node.name for node in self.nodes]}"
