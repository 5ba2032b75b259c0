"""What became of each layer of the model, from its calls before the passes and after."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.lower import Lowered, macs_of
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.nn.packed import PackedLayer
from bnn_ext.nn.torch_calls import TorchCall

FUSED, PACKED, LEFT = "fused", "packed", "left"


@dataclass
class _Layer:
    kind: str
    bytes: int = 0
    macs: int = 0
    has_product: bool = False
    calls: list[Node] = field(default_factory=list)


class Origins:
    """The layers of a model as its graph has them before the passes.

    Calls that a pass replaces keep their layer in `meta["layer"]`, and those that disappear in
    another call are named in its `meta["absorbed"]`.
    """

    def __init__(self, graph: Graph) -> None:
        self.layers: dict[str, _Layer] = {}
        seen: set[int] = set()
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            layer = self.layers.setdefault(node.meta["layer"], _Layer(node.meta["kind"]))
            layer.macs += macs_of(node)
            for constant in node.all_input_nodes:
                tensor = ir.tensor_of(constant)
                if tensor is not None and id(constant) not in seen:
                    seen.add(id(constant))
                    layer.bytes += tensor.nbytes

    def report(self, graph: Graph, lowered: Lowered) -> Report:
        """One row for each layer, in the order of their first calls."""
        rows = {
            name: LayerReport(name, layer.kind, FUSED, "", layer.bytes, 0, layer.macs)
            for name, layer in self.layers.items()
        }
        counted: set[int] = set()
        for node in graph.nodes:
            if node.op != "call_function" or "layer" not in node.meta:
                continue
            row = rows[node.meta["layer"]]
            module = lowered.made.get(node)
            if module is not None and id(module) not in counted:
                counted.add(id(module))
                row.bytes_after += sum(tensor.nbytes for tensor in module.tensors().values())
            if node.target is ir.product:
                row.status, row.reason = _product(node, lowered)
            elif isinstance(module, TorchCall) and ("left" in node.meta or not row.reason):
                row.status = LEFT
                row.reason = node.meta.get("left", "real")
            for absorbed in node.meta.get("absorbed", ()):
                other = rows[absorbed.meta["layer"]]
                if other is not row and not other.reason:
                    other.reason = f"joins {row.name or row.kind}"
        for row in rows.values():
            if not row.reason:
                row.reason = "moves bits" if row.status == FUSED else row.reason
        return Report(list(rows.values()))


def _product(node: Node, lowered: Lowered) -> tuple[str, str]:
    """Status and reason of a binary layer."""
    note = f"; {node.meta['note']}" if node.meta.get("note") else ""
    real = "" if ir.holds_signs(node.args[0]) else "real input, "
    users = list(node.users)
    if len(users) == 1 and users[0].target is ir.compare:
        return FUSED, f"{real}gives bits{note}"
    end = users[0] if len(users) == 1 and users[0].target is ir.finish else node
    why = _why_floats(end)
    both = any(user.target in (ir.sign, ir.compare) for user in end.users)
    gives = "floats and bits" if both else "floats"
    return PACKED, f"{real}gives {gives}: {why}{note}"


def _why_floats(end: Node) -> str:
    """What keeps the output of a layer from being bits alone."""
    for user in end.users:
        if user.op == "output":
            return "they are the network's output"
        if user.target is ir.sign and user.meta.get("why"):
            return str(user.meta["why"])
    users = [user for user in end.users if user.target not in (ir.sign, ir.compare)]
    if not users:
        return "a sign in front of the next layer is taken of them"
    places = dict.fromkeys(_place(user) for user in users)
    return f"{', '.join(places)} takes real values"


def _place(node: Node) -> str:
    layer, kind = node.meta.get("layer", ""), node.meta.get("kind", "")
    return f"{kind} {layer}" if layer else kind or str(node.target)
