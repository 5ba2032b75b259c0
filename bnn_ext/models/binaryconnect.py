"""BinaryConnect's networks: binary weights in every layer, real activations, BatchNorm and ReLU.

Weights start uniform on [-1, 1]. Keep them there with `bnn.clip_weights`. In eval mode the layers
compute with the weights' signs, also where training draws them: the first of the paper's three
choices at test time.

Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import (
    feedforward,
    normalized,
    require_input_size,
    require_positive,
    require_probability,
    scaled,
)

_EPS = 1e-4  # of all BatchNorms
_SHRINKS = 8  # three max-pools


def binaryconnect_mlp(
    num_classes: int = 10,
    in_features: int = 784,
    *,
    hidden: int = 2048,
    layers: int = 3,
    dropout: float = 0.0,
    stochastic: bool = True,
    momentum: float = 0.15,
) -> nn.Sequential:
    """BinaryConnect's network for MNIST: ten million parameters. 3 x 2048, then the classifier.

    Shape: `[N, ...]` of `in_features` values each to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_features: values of one image.
        hidden: units of each hidden layer; the paper has 1024.
        layers: number of hidden layers.
        dropout: probability behind each hidden layer.
        stochastic: whether training draws the weights' signs.
        momentum: of BatchNorm in torch's sense, the weight of the new batch.

    Raises:
        ValueError: a size is not positive, or `dropout` is not in [0, 1].

    Source: "BinaryConnect", 2015 (arXiv:1511.00363), section 3.1, in the sizes of its code.
    """
    require_positive(num_classes=num_classes, in_features=in_features, hidden=hidden, layers=layers)
    require_probability(dropout=dropout)
    linears = [
        _linear(inputs, hidden, stochastic) for inputs in (in_features, *(hidden,) * (layers - 1))
    ]
    norm: dict[str, Any] = {"eps": _EPS, "momentum": momentum}
    return nn.Sequential(
        *feedforward([], [], linears, nn.ReLU, dropout=dropout, **norm),
        *normalized(_linear(hidden, num_classes, stochastic), **norm),
    )


def binaryconnect_cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    input_size: int = 32,
    *,
    width: float = 1.0,
    stochastic: bool = True,
    momentum: float = 0.1,
) -> nn.Sequential:
    """BinaryConnect's network for CIFAR-10 and SVHN: 14 million parameters.

    128C3-128C3-P-256C3-256C3-P-512C3-512C3-P-1024-1024-num_classes.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 8.
        width: factor of all widths; the network for SVHN has half of them in the convolutions.
        stochastic: whether training draws the weights' signs.
        momentum: of BatchNorm in torch's sense, the weight of the new batch.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: "BinaryConnect", 2015 (arXiv:1511.00363), section 3.2.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_input_size(input_size, _SHRINKS)
    widths = [scaled(channels, width) for channels in (128, 128, 256, 256, 512, 512)]
    hidden = scaled(1024, width)
    convs = [_conv(*channels, stochastic) for channels in pairwise((in_channels, *widths))]
    pools = [nn.MaxPool2d(2) if i % 2 == 1 else None for i in range(len(convs))]
    features = widths[-1] * (input_size // _SHRINKS) ** 2
    linears = [_linear(features, hidden, stochastic), _linear(hidden, hidden, stochastic)]
    norm: dict[str, Any] = {"eps": _EPS, "momentum": momentum}
    return nn.Sequential(
        *feedforward(convs, pools, linears, nn.ReLU, **norm),
        *normalized(_linear(hidden, num_classes, stochastic), **norm),
    )


def _linear(inputs: int, outputs: int, stochastic: bool) -> bnn.BinaryLinear:
    layer = bnn.BinaryLinear(inputs, outputs, bias=False, **_quantizers(stochastic))
    nn.init.uniform_(layer.weight, -1, 1)
    return layer


def _conv(inputs: int, outputs: int, stochastic: bool) -> bnn.BinaryConv2d:
    layer = bnn.BinaryConv2d(inputs, outputs, 3, padding=1, bias=False, **_quantizers(stochastic))
    nn.init.uniform_(layer.weight, -1, 1)
    return layer


def _quantizers(stochastic: bool) -> dict[str, Any]:
    weight_quantizer = "stochastic_sign" if stochastic else "ste_sign"
    return {"input_quantizer": None, "weight_quantizer": weight_quantizer}
