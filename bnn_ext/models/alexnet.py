"""AlexNet with BatchNorm, as "One weird trick" defines it, and its binary form, for 224x224 images.

Images of other data sets are resized, as the reference does with CIFAR's. The outputs are logits:
no LogSoftmax follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import (
    feedforward,
    normalized,
    require_input_size,
    require_positive,
    require_probability,
)

_WIDTHS = (64, 192, 384, 256, 256)
# Kernel, stride and padding of each convolution.
_GEOMETRY = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
_POOLED = (0, 1, 4)  # the convolutions in front of a max-pool
_SMALLEST = 63


def alexnet_binary(
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    *,
    inflate: int = 3,
    hidden: int = 4096,
) -> nn.Sequential:
    """Binary AlexNet, its convolutions three times as wide: 77.2 million parameters.

    192-P-576-P-1152-768-256-P-4096-4096-num_classes. The first layer has binary weights but takes
    the real image.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits, also in the last BatchNorm.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 63.
        inflate: factor of the first four convolutions' widths.
        hidden: units of both hidden layers.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830); the widths are those of itayhubara/BinaryNet.pytorch.
    """
    require_positive(inflate=inflate, hidden=hidden)
    widths = [*(inflate * width for width in _WIDTHS[:-1]), _WIDTHS[-1]]
    features = _features(widths, num_classes, in_channels, input_size)
    convs = [
        bnn.BinaryConv2d(
            inputs, outputs, *_GEOMETRY[i], input_quantizer="ste_sign" if i > 0 else None
        )
        for i, (inputs, outputs) in enumerate(pairwise((in_channels, *widths)))
    ]
    units = pairwise((features, hidden, hidden))
    linears = [bnn.BinaryLinear(inputs, outputs) for inputs, outputs in units]
    classifier = normalized(bnn.BinaryLinear(hidden, num_classes))
    return nn.Sequential(*feedforward(convs, _pools(), linears, nn.Hardtanh), *classifier)


def alexnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> nn.Sequential:
    """The float twin: 64-P-192-P-384-256-256-P-4096-4096-num_classes with ReLU and dropout.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 63.
        hidden: units of both hidden layers.
        dropout: probability behind each hidden fully connected layer.

    Raises:
        ValueError: a size is not positive, `input_size` is too small, or `dropout` is not in
            [0, 1].

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014
    (arXiv:1404.5997), with the BatchNorm of itayhubara/BinaryNet.pytorch; pool, BatchNorm and ReLU
    stand in the same order everywhere.
    """
    require_positive(hidden=hidden)
    require_probability(dropout=dropout)
    features = _features(_WIDTHS, num_classes, in_channels, input_size)
    widths = pairwise((in_channels, *_WIDTHS))
    convs = [
        nn.Conv2d(inputs, outputs, *geometry, bias=False)
        for (inputs, outputs), geometry in zip(widths, _GEOMETRY, strict=True)
    ]
    units = pairwise((features, hidden, hidden))
    linears = [nn.Linear(inputs, outputs, bias=False) for inputs, outputs in units]
    return nn.Sequential(
        *feedforward(convs, _pools(), linears, nn.ReLU, dropout=dropout),
        nn.Linear(hidden, num_classes),
    )


def _pools() -> list[nn.Module | None]:
    return [nn.MaxPool2d(3, stride=2) if i in _POOLED else None for i in range(len(_WIDTHS))]


def _features(widths: Sequence[int], num_classes: int, in_channels: int, input_size: int) -> int:
    """Checks the sizes; the number of values that the convolutions leave of an image."""
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_input_size(input_size, _SMALLEST)
    size = input_size
    for i, (kernel, stride, padding) in enumerate(_GEOMETRY):
        size = (size + 2 * padding - kernel) // stride + 1
        if i in _POOLED:
            size = (size - 3) // 2 + 1
    return widths[-1] * size**2
