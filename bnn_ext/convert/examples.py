"""Noise for models that come without example inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# Heights and widths to try, the usual ones first.
_SIZES = (32, 28, 224, 64, 16, 8, 4, 96, 128)


def example_for(model: nn.Module) -> list[Tensor]:
    """A batch of noise in a shape that the model takes, from its first layer with a weight.

    Raises:
        ValueError: the model does not show which shape that is.
    """
    layer = next(
        (m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)), None
    )
    shapes: list[tuple[int, ...]] = []
    if isinstance(layer, nn.Linear):
        shapes = [(layer.in_features,)]
    elif isinstance(layer, nn.Conv2d):
        shapes = [(layer.in_channels, size, size) for size in _SIZES]
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        shapes = [(layer.num_features,), *((layer.num_features, s, s) for s in _SIZES)]
    for shape in shapes:
        assert layer is not None
        weight = layer.weight
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
        device = weight.device if isinstance(weight, Tensor) else None
        example = torch.randn(2, *shape, device=device, dtype=dtype)
        try:
            with torch.no_grad():
                copy.deepcopy(model)(example.clone())
        except Exception:  # whatever a model says to a shape that it does not take
            continue
        return [example]
    raise ValueError(
        "example_inputs must be given, found None: the model's first layer does not show the shape "
        "of its input"
    )
