"""What happens to binary weights in training: published methods, by name.

| name             | binary weights                                                                |
| ---------------- | ----------------------------------------------------------------------------- |
| `bnn`            | latent, in [-1, 1]                                                            |
| `binaryconnect`  | the same, with Glorot's learning rates                                        |
| `xnor`           | latent, their mean over the inputs taken off, scaled gradients                |
| `bop`            | ±1, flipped by Bop; `lr` (1e-4) and `threshold` (1e-8) of Bop                 |
| `real`           | real, in [-1, 1]: step 1 of Bi-Real Net and ReActNet, phase 1 of BNEW         |
| `bnew`           | real, driven to ±1: phase 2; `strength` (1e-4), `frozen_epochs` (19)          |
| `mirror_descent` | real, driven to ±1; `mirror`, `stable`, `sharpness`, `growth`,                |
|                  | `growth_interval` of MirrorDescent                                            |

All other parameters are the optimizer's. The parts are those of `bnn_ext.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnn_ext import nn as bnn
from bnn_ext import optim

Make = Callable[[Any], torch.optim.Optimizer]  # from parameters or groups of them
SetEpoch = Callable[[int], None]  # told each epoch, from 0, before its first step


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        start: makes the optimizer of a model with binary layers, from how to make one of given
            parameters, the number of epochs and the method's settings; hooks are on it.
        settings: names of the settings.
        quantizer: of weights in training, None for real ones; "" leaves the model's.
        binary_in_the_end: whether weights that were real in training are ±1 when it is over.
    """

    start: Callable[..., tuple[torch.optim.Optimizer, SetEpoch | None]]
    settings: tuple[str, ...] = ()
    quantizer: str | None = ""
    binary_in_the_end: bool = True


_Started = tuple[torch.optim.Optimizer, SetEpoch | None]


def _bnn(model: nn.Module, make: Make, epochs: int) -> _Started:
    optimizer = make(model.parameters())
    bnn.clip_weights(optimizer, bnn.binary_parameters(model))
    return optimizer, None


def _binaryconnect(model: nn.Module, make: Make, epochs: int) -> _Started:
    optimizer = make(optim.glorot_groups(model))
    bnn.clip_weights(optimizer, bnn.binary_parameters(model))
    return optimizer, None


def _xnor(model: nn.Module, make: Make, epochs: int) -> _Started:
    weights = bnn.binary_parameters(model)
    optimizer = make(model.parameters())
    optim.project(optimizer, weights, optim.centered)
    bnn.clip_weights(optimizer, weights)
    optim.scale_gradients(weights, optim.xnor_gradient_factor)
    return optimizer, None


def _bop(model: nn.Module, make: Make, epochs: int, **settings: Any) -> _Started:
    binary, others = optim.split_parameters(model)
    return optim.Combined(optim.Bop(binary, **settings), make(others)), None


def _bnew(model: nn.Module, make: Make, epochs: int, **settings: Any) -> _Started:
    optimizer = make(model.parameters())
    pull = optim.Bnew(optimizer, bnn.binary_parameters(model), epochs=epochs, **settings)
    return optimizer, pull.set_epoch


def _mirror_descent(model: nn.Module, make: Make, epochs: int, **settings: Any) -> _Started:
    binary, others = optim.split_parameters(model)
    rest = make(others)
    lr = rest.param_groups[0]["lr"]
    return optim.Combined(optim.MirrorDescent(binary, lr, **settings), rest), None


METHODS = {
    "bnn": Method(_bnn),
    "binaryconnect": Method(_binaryconnect),
    "xnor": Method(_xnor, quantizer="xnor_sign"),
    "bop": Method(_bop, settings=("lr", "threshold")),
    "real": Method(_bnn, quantizer=None, binary_in_the_end=False),
    "bnew": Method(_bnew, settings=("strength", "frozen_epochs"), quantizer=None),
    "mirror_descent": Method(
        _mirror_descent,
        settings=("mirror", "stable", "sharpness", "growth", "growth_interval"),
        quantizer=None,
    ),
}


def set_quantizers(model: nn.Module, method: str, *, trained: bool = False) -> None:
    """Gives binary layers the weight quantizer that a method trains with, or in the end leaves."""
    how = METHODS[method]
    own = how.quantizer == "" or (trained and how.quantizer is None and how.binary_in_the_end)
    if not own and has_binary_layers(model):
        bnn.set_weight_quantizer(model, how.quantizer)


def has_binary_layers(model: nn.Module) -> bool:
    """Whether there is anything for a method to do; float networks train as they are."""
    return any(isinstance(module, _BINARY_LAYERS) for module in model.modules())


_BINARY_LAYERS = (bnn.BinaryLinear, bnn.BinaryConv1d, bnn.BinaryConv2d, bnn.BinaryConv3d)


def require_one_of(known: Iterable[Any], **values: Any) -> None:
    """Checks choices, given by the names they have for the user.

    Raises:
        ValueError: one is not among those known.
    """
    known = list(known)
    for name, value in values.items():
        if value not in known:
            choices = ", ".join(map(str, known)) or "nothing"
            raise ValueError(f"{name} must be one of {choices}, found {value!r}")
