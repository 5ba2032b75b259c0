"""Which weights a network is tested with, and how far it is from a binary one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnn_ext.nn.binary import binary_layers
from bnn_ext.optim._base import at_least_one
from bnn_ext.quantizers import Quantizer, sign, ste_sign, stochastic_sign


def _drawn(weight: Tensor) -> Tensor:
    """`stochastic_sign`, but a layer does not know it and so does not replace it in eval mode."""
    return stochastic_sign(weight)


_CHOICES: dict[str, Quantizer | None] = {"real": None, "drawn": _drawn}


@contextmanager
def weights_as(model: nn.Module, choice: str) -> Iterator[None]:
    """BinaryConnect's three choices of the weights at test time, while the context lasts.

        with optim.weights_as(model.eval(), "real"):
            accuracy = evaluate(model)

    | choice   | the binary layers compute with                                                  |
    | -------- | ------------------------------------------------------------------------------- |
    | "binary" | their weight quantizer, as always; the sign where that is None, as under BNEW   |
    | "real"   | the latent weights: training in binary was a regularizer                        |
    | "drawn"  | signs drawn anew in each forward, for the mean of many answers: `mean_of_draws` |

    Args:
        model: holds at least one binary layer; its weights stay as they are.
        choice: "binary", "real" or "drawn".

    Raises:
        ValueError: the choice is none of them, or `model` holds no binary layer.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363), section 2.6.
    """
    if choice != "binary" and choice not in _CHOICES:
        raise ValueError(f"choice must be one of binary, real, drawn, found {choice!r}")
    layers = binary_layers(model)
    before = [layer.weight_quantizer for layer in layers]
    try:
        for layer in layers:
            if choice != "binary":
                layer.weight_quantizer = _CHOICES[choice]
            elif layer.weight_quantizer is None:
                layer.weight_quantizer = ste_sign
        yield
    finally:
        for layer, quantizer in zip(layers, before, strict=True):
            layer.weight_quantizer = quantizer


@torch.no_grad()
def mean_of_draws(model: nn.Module, *inputs: Tensor, draws: int = 16) -> Tensor:
    """The mean output of an ensemble of networks whose weights' signs are drawn.

    Args:
        model: holds at least one binary layer, usually in eval mode.
        inputs: of the model.
        draws: number of networks, positive.

    Returns:
        The mean of the outputs, in their shape.

    Raises:
        ValueError: `draws` is not positive, or `model` holds no binary layer.

    Source: "BinaryConnect", 2015 (arXiv:1511.00363), section 2.6, the third choice.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    with weights_as(model, "drawn"):
        return torch.stack([model(*inputs) for _ in range(draws)]).mean(0)


@torch.no_grad()
def distance_to_binary(params: Iterable[Tensor]) -> float:
    """The mean of `|w - sign(w)|` over all weights: 0 where all are ±1.

    Args:
        params: at least one; `bnn.binary_parameters(model)` gives them.

    Raises:
        ValueError: there is no weight.

    Source: `dist_to_binary` of Alasdair-P/bnew.
    """
    params = at_least_one(params)
    total = sum((weight - sign(weight)).abs().sum(dtype=torch.float64) for weight in params)
    return float(total) / sum(weight.numel() for weight in params)


class FlipRatio:
    """The fraction of weights that changed their sign since the last look.

        flips = optim.FlipRatio(bnn.binary_parameters(model))
        for epoch in range(epochs):
            ...train...
            print(flips.update())

    Args:
        params: at least one. After a resume between two looks, make it when the weights are loaded;
            in the middle, give it its state_dict.

    Raises:
        ValueError: there is no weight.

    Source: Helwegen et al., "Latent Weights Do Not Exist", 2019 (arXiv:1906.02107), section 5,
    whose measure is the logarithm of this ratio per step.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._params = at_least_one(params)
        self._positive = self._look()

    def _look(self) -> list[Tensor]:
        return [weight.detach() >= 0 for weight in self._params]

    def update(self) -> float:
        """The fraction of signs that differ from those at the last call, or at the beginning."""
        before, self._positive = self._positive, self._look()
        flips = sum((a != b).sum() for a, b in zip(before, self._positive, strict=True))
        return float(flips) / sum(weight.numel() for weight in self._params)

    def state_dict(self) -> dict[str, Any]:
        """The signs at the last look."""
        return {"positive": self._positive}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._positive = [
            positive.to(weight.device)
            for positive, weight in zip(state_dict["positive"], self._params, strict=True)
        ]
