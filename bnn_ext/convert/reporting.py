"""What became of each layer of the model, from its calls before the passes and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.calls import Lowered
from bnn_ext.convert.ir import aten
from bnn_ext.convert.lower import macs_of
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.nn.fused import Elementwise
from bnn_ext.nn.packed import Pack, PackedLayer
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.pooling import RealPool
from bnn_ext.nn.real_inputs import BinaryWeightConv2d, BinaryWeightLinear
from bnn_ext.nn.torch_calls import TorchCall

FUSED, PACKED, LEFT = "fused", "packed", "left"

_LEFT = (TorchCall, RealPool, PointwiseConv2d)  # what is real, and stays so
_COMPARISONS = (ir.sign, ir.compare)
_PRODUCTS = (aten.convolution.default, aten.linear.default)


@dataclass
class _Layer:
    kind: str
    bytes: int = 0
    macs: int = 0


class Origins:
    """The layers of a model as its graph has them before the passes.

    Calls that a pass replaces keep their layer in `meta["layer"]`, and those that disappear in
    another call are named in its `meta["absorbed"]`.
    """

    def __init__(self, graph: Graph) -> None:
        self.layers: dict[str, _Layer] = {}
        self.notes: list[str] = []
        self._meetings: set[Node] = set()  # calls that put several values together
        seen: set[Node] = set()
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            layer = self.layers.setdefault(node.meta["layer"], _Layer(node.meta["kind"]))
            layer.macs += macs_of(node)
            if sum(map(ir.is_variable, node.all_input_nodes)) > 1:
                self._meetings.add(node)
            for constant in node.all_input_nodes:
                tensor = ir.tensor_of(constant)
                if tensor is not None and tensor.dim() and constant not in seen:  # not numbers
                    seen.add(constant)
                    layer.bytes += tensor.nbytes

    def note_signs(self, graph: Graph) -> None:
        """Keeps what is to be said of signs, as long as a pass has not moved them."""
        places: dict[str, list[str]] = {}
        for node in graph.find_nodes(op="call_function", target=ir.sign):
            if node.meta.get("note"):
                places.setdefault(node.meta["note"], []).append(_place(node))
        for note, where in places.items():
            others = f" and {len(where) - 1} more" if len(where) > 1 else ""
            self.notes.append(f"{note} (at {where[0]}{others})")

    def report(self, graph: Graph, lowered: Lowered) -> Report:
        """One row for each layer, in the order of their first calls."""
        rows = {
            name: LayerReport(name, layer.kind, FUSED, "", layer.bytes, 0, layer.macs)
            for name, layer in self.layers.items()
        }
        calls: dict[str, list[Node]] = {name: [] for name in rows}
        absorbed: dict[str, list[Node]] = {name: [] for name in rows}
        homes: dict[nn.Module, str] = {}  # the layer in whose row a module is
        for node in graph.nodes:
            if node.op != "call_function" or "layer" not in node.meta:
                continue
            name = node.meta["layer"]
            calls[name].append(node)
            for call in node.meta.get("absorbed", ()):
                absorbed[call.meta["layer"]].append(node)
            module = lowered.made.get(node)
            if module is not None and module not in homes:
                homes[module] = name
                rows[name].bytes_after += sum(t.nbytes for t in module.tensors().values())
        told = _Told(lowered, homes, self._meetings)
        for name, row in rows.items():
            row.status, row.reason = told.layer(name, calls[name], absorbed[name])
        return Report(list(rows.values()), list(self.notes))


@dataclass
class _Told:
    """Words for what became of a layer."""

    lowered: Lowered
    homes: dict[nn.Module, str]
    meetings: set[Node]

    def layer(self, name: str, calls: list[Node], absorbed: list[Node]) -> tuple[str, str]:
        """Status and reason of a layer, of the calls that are left and those that took others in.

        Of several the one that matters most: products, then real values, then bits.
        """
        for call in calls:
            if call.target is ir.product:
                return self.product(call)
        real = [call for call in calls if isinstance(self.lowered.made.get(call), _LEFT)]
        if real:
            return LEFT, _why_left(real)
        own = [call for call in calls if self.home(call) == name]
        for call in own:
            module = self.lowered.made[call]
            if isinstance(module, Elementwise):
                return self.elementwise(module, call)
            signs = isinstance(module, Pack)
            return FUSED, "gives bits: the signs of real values" if signs else "works on bits"
        elsewhere = [call for call in (*absorbed, *calls) if self.home(call) is not None]
        if elsewhere:
            return FUSED, self.where(elsewhere[0])
        return FUSED, "takes no time: what follows reads its input in another order"

    def home(self, call: Node) -> str | None:
        """The layer that does the work of the call."""
        module = self.lowered.made.get(call)
        return None if module is None else self.homes[module]

    def where(self, call: Node) -> str:
        """In which part of another layer the work is done."""
        module = self.lowered.made[call]
        home = self.homes[module] or "(model)"
        if isinstance(module, Pack):
            return f"in the threshold in front of {home}"
        if isinstance(module, Elementwise):
            return f"in one pass over memory with {home}"
        if isinstance(module, (TorchCall, PointwiseConv2d)):
            return f"in the weight of {home}"
        if call.target is ir.compare and ir.calls(call.args[0], ir.product):
            return f"in the threshold of {home}"
        return f"in the kernel of {home}"

    def product(self, call: Node) -> tuple[str, str]:
        """Of a binary layer."""
        module = self.lowered.made[call]
        note = f"; {call.meta['note']}" if call.meta.get("note") else ""
        if not ir.holds_signs(call.args[0]):
            by_torch = isinstance(module, (BinaryWeightConv2d, BinaryWeightLinear))
            summed = ", so torch sums" if by_torch else ""
            note = f"; its input is real (no sign in front{summed}){note}"
        floats, bits = _gives(module)
        if not floats:
            return FUSED, f"gives bits{note}"
        end = call
        for user in call.users:
            if user.target is ir.finish and self.lowered.made.get(user) is module:
                end = user
        both = " and bits" if bits else ""
        return PACKED, f"gives floats{both}: {self.why_floats(end)}{note}"

    def elementwise(self, module: Elementwise, call: Node) -> tuple[str, str]:
        """Of steps on real values that no layer in front of them could take in."""
        floats, bits = _gives(module)
        if not floats:
            return FUSED, "gives bits: steps on real values, and their signs"
        both = " and bits" if bits else ""
        return LEFT, f"one pass over real values, gives floats{both}: {self.why_floats(call)}"

    def why_floats(self, end: Node) -> str:
        """What keeps a result from being bits alone."""
        users = [user for user in end.users if user.target not in _COMPARISONS]
        if any(user.op == "output" for user in users):
            return "they are the network's output"
        if not users:
            whys = [str(user.meta["why"]) for user in end.users if user.meta.get("why")]
            return whys[0] if whys else "their signs are taken in a pass of its own"
        places = dict.fromkeys(self.taker(user, end) for user in users)
        return f"{', '.join(places)} {'takes' if len(places) == 1 else 'take'} real values"

    def taker(self, user: Node, value: Node) -> str:
        """Where the model takes a value; calls that were joined are told apart."""
        absorbed = user.meta.get("absorbed", ())
        if user.target is ir.finish and user.args[0] is value:
            others = (call for call in absorbed if call.meta["layer"] != value.meta["layer"])
            return _place(next(others, user))
        call = next((call for call in absorbed if call in self.meetings), user)
        is_sum = call.target == aten.add.Tensor and call in self.meetings
        return f"the sum in {_place(call)}" if is_sum else _place(call)


def _gives(module: PackedLayer) -> tuple[bool, bool]:
    """Whether a layer gives floats, and whether it gives bits."""
    bits = getattr(module, "threshold", None) is not None
    return getattr(module, "floats", not bits), bits


def _why_left(calls: list[Node]) -> str:
    """Why calls of torch run as they did."""
    for call in calls:
        if call.meta.get("left"):
            return f"real: {call.meta['left']}"
        if call.target in _PRODUCTS:
            return "real weights, not ±s (bnn_ext.nn.binarize makes a model's layers binary)"
    names = ", ".join(dict.fromkeys(_operators(calls)))
    for call in calls:
        for user in call.users:
            if user.target is ir.sign and user.meta.get("why"):
                return f"{names} of real values: {user.meta['why']}"
    return f"{names} of real values"


def _operators(calls: list[Node]) -> Iterator[str]:
    for call in calls:
        schema = getattr(call.target, "_schema", None)
        name = getattr(call.target, "__name__", "") if schema is None else schema.name
        yield name.removeprefix("aten::").strip("_")


def _place(node: Node) -> str:
    layer, kind = node.meta.get("layer", ""), node.meta.get("kind", "")
    return f"{kind} {layer}" if layer else kind or str(node.target)
