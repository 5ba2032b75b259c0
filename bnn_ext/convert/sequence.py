"""A model of nested Sequentials as a flat list of layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn_ext.nn.packed import is_channels_last


@dataclass
class Layer:
    """One module of the sequence, and what it took and gave if the model was run."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    output_channels_last: bool = False


def has_own_forward(module: nn.Module) -> bool:
    """Whether the forward is neither torch.nn's nor ours: then a base class tells nothing."""
    return not type(module).forward.__module__.startswith(("torch.nn.", "bnn_ext."))


def is_sequence(module: nn.Module) -> bool:
    """Whether the module runs its children in order and does nothing else."""
    return isinstance(module, nn.Sequential) and not has_own_forward(module)


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers in the order they run; names are those of `model.named_modules()`.

    A module that is not a Sequential is one layer, whatever it holds.
    """
    if not is_sequence(model):
        return [Layer("", model)]
    layers = []
    for name, child in model._modules.items():  # named_children() would skip a module used twice
        assert child is not None
        for layer in layers_of(child):
            layer.name = f"{name}.{layer.name}" if layer.name else name
            layers.append(layer)
    return layers


def record_shapes(layers: list[Layer], input: Tensor) -> None:
    """Runs the layers one after the other and notes shapes and memory formats."""
    input = input.clone()  # layers may work in place
    with torch.no_grad():
        for layer in layers:
            layer.input_shape = tuple(input.shape)
            input = layer.module(input)
            if not isinstance(input, Tensor):
                raise TypeError(
                    f"layer {layer.name or '(model)'} must return one tensor, found "
                    f"{type(input).__name__}"
                )
            layer.output_shape = tuple(input.shape)
            layer.output_channels_last = is_channels_last(input)
