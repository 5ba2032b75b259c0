"""XNOR-Net's small networks: BatchNorm, sign, binary convolution, ReLU.

First and last layer are real. The sums are scaled by each output channel's mean weight magnitude;
the paper's scales of the inputs are left out, as in jiecaoyu/XNOR-Net-PyTorch, which the widths are
from. Source: Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net", 2016 (arXiv:1603.05279).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import (
    require_input_size,
    require_positive,
    require_probability,
    scaled,
)
from bnn_ext.quantizers import Quantizer, dropout_sign

_EPS = 1e-4  # of all BatchNorms


def xnor_nin(
    num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0, dropout: float = 0.5
) -> nn.Sequential:
    """Network in Network for CIFAR: one million parameters.

    Three groups of a wide convolution and two of 1x1, a max-pool behind the first and means of 3x3
    behind the second; the mean of the last map gives the logits.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 32x32.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor of all widths.
        dropout: probability behind the sign in the first layer of the second and third group.

    Raises:
        ValueError: a size is not positive, or `dropout` is not in [0, 1].

    Source: Lin, Chen, Yan, "Network In Network", 2013 (arXiv:1312.4400), as in XNOR-Net.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_probability(dropout=dropout)
    wide, middle, narrow = (scaled(channels, width) for channels in (192, 160, 96))
    dropped = partial(dropout_sign, p=dropout)
    return nn.Sequential(
        nn.Conv2d(in_channels, wide, 5, padding=2),
        nn.BatchNorm2d(wide, eps=_EPS, affine=False),
        nn.ReLU(),
        *_conv(wide, middle, 1),
        *_conv(middle, narrow, 1),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_conv(narrow, wide, 5, input_quantizer=dropped),
        *_conv(wide, wide, 1),
        *_conv(wide, wide, 1),
        nn.AvgPool2d(3, stride=2, padding=1),
        *_conv(wide, wide, 3, input_quantizer=dropped),
        *_conv(wide, wide, 1),
        nn.BatchNorm2d(wide, eps=_EPS, affine=False),
        nn.Conv2d(wide, num_classes, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def xnor_lenet5(num_classes: int = 10, in_channels: int = 1, input_size: int = 28) -> nn.Sequential:
    """LeNet-5 for MNIST: 433 thousand parameters. 20C5-P-50C5-P-500-num_classes.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 16.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", 1998, as in XNOR-Net.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_input_size(input_size, 16)
    features = 50 * (((input_size - 4) // 2 - 4) // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(in_channels, 20, 5),
        nn.BatchNorm2d(20, eps=_EPS, affine=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *_conv(20, 50, 5, padding=0),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(features, eps=_EPS),
        bnn.BinaryLinear(features, 500, weight_quantizer="magnitude_aware_sign"),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    padding: int | None = None,
    input_quantizer: str | Quantizer = "ste_sign",
) -> list[nn.Module]:
    """BatchNorm, sign, convolution, ReLU; the map keeps its size unless the padding is given."""
    return [
        nn.BatchNorm2d(inputs, eps=_EPS),
        bnn.BinaryConv2d(
            inputs,
            outputs,
            kernel,
            padding=kernel // 2 if padding is None else padding,
            input_quantizer=input_quantizer,
            weight_quantizer="magnitude_aware_sign",
        ),
        nn.ReLU(),
    ]
