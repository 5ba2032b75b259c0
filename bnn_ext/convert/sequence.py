"""A model of nested Sequentials as a flat list of layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Layer:
    """One module of the sequence, and the shapes it saw if the model was run."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None


def is_sequence(module: nn.Module) -> bool:
    """Whether the module runs its children in order and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


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
    """Runs the layers one after the other and notes the shapes at each."""
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
