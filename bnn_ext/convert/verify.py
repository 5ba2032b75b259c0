"""The converted network against the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert.capture import capture
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.reference import unpack_bits


@dataclass
class LayerDifference:
    """A value inside the network against the same value inside the model.

    Attributes:
        name: of the value in the network, which begins with that of its layer.
        elements: numbers or bits in it.
        different: how many are not equal, bit for bit.
        largest_difference: largest absolute difference; 2 between the two values of a bit.
    """

    name: str
    elements: int
    different: int
    largest_difference: float
    bits: bool


@dataclass
class Verification:
    """How far the outputs of two models agree on the same inputs.

    Attributes:
        elements: numbers in the outputs.
        different: how many of them are not equal, bit for bit (two NaN are equal).
        largest_difference: largest absolute difference.
        predictions: rows of outputs of shape `[N, classes]`, whose largest element is the
            prediction.
        different_predictions: rows whose predictions differ.
        activations: bits inside the network, counted where it rounds otherwise than the model.
        flips: how many of them differ: their sums are within rounding of the threshold, or an
            earlier flip had a part in them.
        layers: value by value in running order, if asked for.
    """

    elements: int
    different: int
    largest_difference: float
    predictions: int
    different_predictions: int
    activations: int = 0
    flips: int = 0
    layers: list[LayerDifference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether every output is the same, bit for bit."""
        return self.different == 0

    @property
    def first_difference(self) -> LayerDifference | None:
        """The first value that differs, of those in `layers`."""
        return next((layer for layer in self.layers if layer.different), None)

    def __str__(self) -> str:
        if self.equal:
            text = f"verified: all {self.elements:,} outputs are equal, bit for bit"
        else:
            text = (
                f"verified: {self.different:,} of {self.elements:,} outputs differ, by "
                f"{self.largest_difference:.3g} at most"
            )
        if self.predictions:
            same = self.predictions - self.different_predictions
            text += f"; {same:,} of {self.predictions:,} predictions are the same"
        if self.activations:
            text += (
                f"; {self.flips:,} of {self.activations:,} activations fell on the other side of "
                "their threshold"
            )
        first = self.first_difference
        if first is not None:
            text += (
                f"; the first difference is at {first.name}: {first.different:,} of "
                f"{first.elements:,} {'bits' if first.bits else 'values'}"
            )
            text += "" if first.bits else f", by {first.largest_difference:.3g} at most"
        return text


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Runs the model in eval mode; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def verify(
    model: nn.Module,
    fast: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    *,
    layers: bool = False,
) -> Verification:
    """Runs both models on the same inputs and compares the outputs.

    Args:
        model: the original; runs in eval mode and is left in the mode it was in.
        fast: what `convert` made of it.
        inputs: a batch of real inputs, or a sequence of them for a model with several.
        layers: whether to compare what is between input and output, too: every value of the network
            that the model has as well. Signs that the network takes earlier than the model, in
            front of a max-pool, say, are compared behind it.

    Raises:
        ValueError: the outputs have different shapes or another structure, or `layers` is asked of
            a network that does not know where its values come from: files do not say it.
    """
    if layers and not (isinstance(fast, PackedNetwork) and fast.origins):
        raise ValueError(
            "layers=True needs a network that knows where its values come from, as convert gives "
            "it; one that was loaded does not"
        )
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    inside: list[LayerDifference] = []
    with eval_mode(model):
        expected, arranged = pytree.tree_flatten(model(*(x.clone() for x in listed)))
        if isinstance(fast, PackedNetwork) and (layers or fast.rounds):
            inside = _inside(model, fast, listed)
    found, found_arranged = pytree.tree_flatten(fast(*(x.clone() for x in listed)))
    shapes, found_shapes = ([tuple(x.shape) for x in values] for values in (expected, found))
    if arranged != found_arranged or shapes != found_shapes:
        raise ValueError(
            f"fast must give outputs of shape {_listed(shapes)} like the model, "
            f"found {_listed(found_shapes)}"
        )
    result = Verification(0, 0, 0.0, 0, 0)
    for ours, theirs in zip(found, expected, strict=True):
        different, largest = _difference(theirs, ours)
        result.elements += theirs.numel()
        result.different += different
        result.largest_difference = max(result.largest_difference, largest)
        if theirs.dim() == 2 and theirs.shape[1] > 0:
            result.predictions += theirs.shape[0]
            result.different_predictions += int((theirs.argmax(1) != ours.argmax(1)).sum())
    if isinstance(fast, PackedNetwork) and fast.rounds:
        result.activations = sum(layer.elements for layer in inside if layer.bits)
        result.flips = sum(layer.different for layer in inside if layer.bits)
    result.layers = inside if layers else []
    return result


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)


def _difference(expected: Tensor, found: Tensor) -> tuple[int, float]:
    """How many elements are not equal, bit for bit, and the largest difference."""
    if not expected.is_floating_point():
        return int((expected != found).sum()), float((expected != found).any())
    same_sign = expected.signbit() == found.signbit()  # tells -0.0 from 0.0
    same = ((expected == found) & same_sign) | (expected.isnan() & found.isnan())
    difference = torch.where(same, 0, (expected.double() - found.double()).abs())
    return int((~same).sum()), float(difference.max()) if difference.numel() else 0.0


def _inside(model: nn.Module, fast: PackedNetwork, inputs: list[Tensor]) -> list[LayerDifference]:
    """What is between input and output, value by value."""
    graph = capture(model, inputs, keep_values=True).graph
    expected = {node.name: node.meta["value"] for node in graph.nodes if "value" in node.meta}
    differences = []
    for name, value in fast.values(*inputs):
        origin = fast.origins.get(name)
        if origin is None or origin.call not in expected:
            continue
        wanted = expected[origin.call]
        if origin.bits:
            channels = wanted.shape[1] if wanted.dim() == 4 else wanted.shape[-1]
            signs = unpack_bits(value, channels)
            if wanted.dim() == 4:
                signs = signs.movedim(-1, 1)
            if origin.order is not None:
                wanted = wanted.index_select(1, origin.order.to(wanted.device))
            different = int(((signs > 0) != (wanted >= 0)).sum())
            largest = 2.0 * bool(different)
        else:
            different, largest = _difference(wanted, value)
        differences.append(LayerDifference(name, wanted.numel(), different, largest, origin.bits))
    return differences
