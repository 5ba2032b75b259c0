"""The converted network against the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
    """

    elements: int
    different: int
    largest_difference: float
    predictions: int
    different_predictions: int

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
    return Verification(expected.numel(), int((~same).sum()), largest, rows, wrong)
