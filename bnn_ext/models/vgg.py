"""The VGG-like networks of BinaryNet for 32x32 images, and their float twin.

Six 3x3 convolutions, a max-pool behind every second, then fully connected layers. The first
convolution has binary weights but takes the real image; all others take signs. The outputs are
logits for `torch.nn.CrossEntropyLoss` or a hinge loss: no LogSoftmax follows.
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
    scaled,
)

_WIDTHS = (128, 128, 256, 256, 512, 512)
_HIDDEN = (1024, 1024)
_SHRINKS = 8  # three max-pools


def vgg_cifar10_binary(
    num_classes: int = 10, in_channels: int = 3, input_size: int = 32, *, inflate: int = 3
) -> nn.Sequential:
    """BinaryNet's VGG, its convolutions three times as wide: 36.5 million parameters.

    384-384-P-768-768-P-1536-512-P-1024-1024-num_classes; the last convolution is not inflated.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 8.
        inflate: factor of the first five convolutions' widths.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830); the widths are those of itayhubara/BinaryNet.pytorch.
    """
    require_positive(inflate=inflate)
    widths = [*(inflate * width for width in _WIDTHS[:-1]), _WIDTHS[-1]]
    return _binary(widths, _HIDDEN, num_classes, in_channels, input_size)


def vgg_cifar100_binary(
    num_classes: int = 100, in_channels: int = 3, input_size: int = 32, *, inflate: int = 3
) -> nn.Sequential:
    """`vgg_cifar10_binary` with 100 classes by default.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes, in_channels, input_size, inflate: as for `vgg_cifar10_binary`.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: the CIFAR-100 variant of pratik-kadlak/BNN.
    """
    return vgg_cifar10_binary(num_classes, in_channels, input_size, inflate=inflate)


def vgg_small_binary(
    num_classes: int = 10,
    in_channels: int = 3,
    input_size: int = 32,
    *,
    width: float = 1.0,
    hidden: Sequence[int] = _HIDDEN,
) -> nn.Sequential:
    """BinaryNet's network for CIFAR-10 at the width of the paper: 14 million parameters.

    128-128-P-256-256-P-512-512-P-1024-1024-num_classes.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 8.
        width: factor of all widths; 0.5 gives the network for SVHN but for its 1024 hidden units.
        hidden: units of the fully connected layers at width 1; () leaves only the classifier, which
            later papers call VGG-small.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: "Binarized Neural Networks", 2016 (arXiv:1602.02830), section 2.3 and its Theano code.
    """
    require_positive(**{f"hidden[{i}]": units for i, units in enumerate(hidden)})
    widths = [scaled(channels, width) for channels in _WIDTHS]
    units = [scaled(units, width) for units in hidden]
    return _binary(widths, units, num_classes, in_channels, input_size)


def vgg_cifar10(
    num_classes: int = 10,
    in_channels: int = 3,
    input_size: int = 32,
    *,
    width: float = 1.0,
    dropout: float = 0.5,
) -> nn.Sequential:
    """The float twin: 128-128-P-256-256-P-512-512-P-1024-1024-num_classes with ReLU and dropout.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 8.
        width: factor of all widths.
        dropout: probability behind each hidden fully connected layer.

    Raises:
        ValueError: a size is not positive, `input_size` is too small, or `dropout` is not in
            [0, 1].

    Source: `vgg_cifar10` of itayhubara/BinaryNet.pytorch, with pool, BatchNorm and ReLU in the same
    order everywhere.
    """
    require_probability(dropout=dropout)
    widths = [scaled(channels, width) for channels in _WIDTHS]
    units = [scaled(units, width) for units in _HIDDEN]
    features = _features(widths, num_classes, in_channels, input_size)
    convs = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        for inputs, outputs in pairwise((in_channels, *widths))
    ]
    linears = [
        nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairwise((features, *units))
    ]
    return nn.Sequential(
        *feedforward(convs, _pools(), linears, nn.ReLU, dropout=dropout),
        nn.Linear(units[-1], num_classes),
    )


def _binary(
    widths: Sequence[int],
    hidden: Sequence[int],
    num_classes: int,
    in_channels: int,
    input_size: int,
) -> nn.Sequential:
    units = (_features(widths, num_classes, in_channels, input_size), *hidden)
    convs = [
        bnn.BinaryConv2d(
            inputs, outputs, 3, padding=1, input_quantizer="ste_sign" if i > 0 else None
        )
        for i, (inputs, outputs) in enumerate(pairwise((in_channels, *widths)))
    ]
    linears = [bnn.BinaryLinear(inputs, outputs) for inputs, outputs in pairwise(units)]
    # The last BatchNorm brings sums of a thousand ±1 down to the range of logits.
    classifier = normalized(bnn.BinaryLinear(units[-1], num_classes), affine=False)
    return nn.Sequential(*feedforward(convs, _pools(), linears, nn.Hardtanh), *classifier)


def _features(widths: Sequence[int], num_classes: int, in_channels: int, input_size: int) -> int:
    """Checks the sizes; the number of values that the convolutions leave of an image."""
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_input_size(input_size, _SHRINKS)
    return widths[-1] * (input_size // _SHRINKS) ** 2


def _pools() -> list[nn.Module | None]:
    return [nn.MaxPool2d(2) if i % 2 == 1 else None for i in range(len(_WIDTHS))]
