"""The converted network against the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn_ext.convert.layers import takes_bits
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.convert.sequence import layers_of
from bnn_ext.nn.packed import (
    PackedConv2d,
    PackedFlatten,
    PackedLinear,
    RealInputConv2d,
    RealInputLinear,
)
from bnn_ext.reference import pack_bits, unpack_bits


@dataclass
class Verification:
    """How far the outputs of two models agree on the same inputs.

    Attributes:
        elements: numbers in the output.
        different: how many of them are not equal, bit for bit (two NaN are equal).
        largest_difference: largest absolute difference.
        predictions: rows of the output, whose largest element is the prediction; 0 if the output
            is not `[N, classes]`.
        different_predictions: rows whose predictions differ.
        activations: bits that come from a layer with a real input by our kernels, whose sums are
            rounded in another order than torch's, where they enter the next packed layer.
        flips: how many of them differ: their sums are within rounding of the threshold, or an
            earlier flip had a part in them.
    """

    elements: int
    different: int
    largest_difference: float
    predictions: int
    different_predictions: int
    activations: int = 0
    flips: int = 0

    @property
    def equal(self) -> bool:
        """Whether every output is the same, bit for bit."""
        return self.different == 0

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
                f"; {self.flips:,} of {self.activations:,} activations behind real inputs fell on "
                "the other side of their threshold"
            )
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
def verify(model: nn.Module, fast: nn.Module, inputs: Tensor) -> Verification:
    """Runs both models on the same inputs and compares the outputs.

    Args:
        model: the original; runs in eval mode and is left in the mode it was in.
        fast: what `convert` made of it.
        inputs: a batch of real inputs.

    Raises:
        ValueError: the outputs have different shapes.
    """
    with eval_mode(model):
        expected = model(inputs.clone())  # either may work in place
        activations, flips = _count_flips(model, fast, inputs)
    found = fast(inputs.clone())
    if expected.shape != found.shape:
        raise ValueError(
            f"fast must give outputs of shape {tuple(expected.shape)} like the model, "
            f"found {tuple(found.shape)}"
        )
    same_sign = expected.signbit() == found.signbit()  # tells -0.0 from 0.0
    same = ((expected == found) & same_sign) | (expected.isnan() & found.isnan())
    difference = torch.where(same, 0, (expected.double() - found.double()).abs())
    rows = expected.shape[0] if expected.dim() == 2 else 0
    wrong = int((expected.argmax(1) != found.argmax(1)).sum()) if rows else 0
    largest = float(difference.max()) if difference.numel() else 0.0
    different = int((~same).sum())
    return Verification(expected.numel(), different, largest, rows, wrong, activations, flips)


def sums_real_inputs(fast: nn.Module) -> bool:
    """Whether our kernels sum real inputs in the network, rounding in an order of their own."""
    return any(isinstance(module, (RealInputLinear, RealInputConv2d)) for module in fast.modules())


def _count_flips(model: nn.Module, fast: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Activations behind real inputs, and how many of them differ."""
    if not isinstance(fast, PackedNetwork) or not sums_real_inputs(fast):
        return 0, 0
    signs = {}
    x = inputs.clone()
    for layer in layers_of(model):
        if takes_bits(layer.module):
            signs[layer.name] = x >= 0
        x = layer.module(x)

    activations = flips = 0
    from_reals, flattened = False, None  # of the bits that come next
    x = inputs.clone()
    for node, module in zip(fast.nodes, fast.steps, strict=True):
        if isinstance(module, (PackedLinear, PackedConv2d)):
            expected = signs.get(node.name)
            if from_reals and expected is not None:
                if isinstance(module, PackedConv2d):
                    expected = expected.permute(0, 2, 3, 1)
                elif flattened is not None:
                    expected = expected.unflatten(1, (flattened, -1)).transpose(1, 2).flatten(1)
                activations += expected.numel()
                flips += int(unpack_bits(x ^ pack_bits(expected), 32 * x.shape[-1]).sum())
            from_reals, flattened = False, None
        elif isinstance(module, (RealInputLinear, RealInputConv2d)):
            from_reals, flattened = module.threshold is not None, None
        elif isinstance(module, PackedFlatten):
            flattened = module.channels
        x = module(x)
    return activations, flips
