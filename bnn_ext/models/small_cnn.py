"""Small convolutional networks for grey images of digits.

The layer order is BinaryNet's: binary convolution, max-pool, BatchNorm, Hardtanh. Pooling stands
before BatchNorm, where it sees sums of many values and not clipped ones. The first layer has binary
weights but takes the real image; all others take signs. No layer has a bias, since BatchNorm has
one, and a last BatchNorm brings sums of hundreds of ±1 down to the range of logits.

All widths are multiples of 32: channels fill whole words of packed bits.

Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
(arXiv:1602.02830), the networks for MNIST and CIFAR-10.
"""

from __future__ import annotations

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import normalized, require_positive


def digits_cnn(num_classes: int = 10) -> nn.Sequential:
    """For 8x8 images: 1.4 million binary weights, 29 million multiply-accumulates an image.

    Shape: `[N, 1, 8, 8]` to `[N, num_classes]`.
    """
    require_positive(num_classes=num_classes)
    return nn.Sequential(
        *_conv(1, 128, input_quantizer=None),
        *_conv(128, 256, pool=True),  # to 4x4
        *_conv(256, 256, pool=True),  # to 2x2
        nn.Flatten(),
        *_linear(256 * 2 * 2, 512),
        nn.Hardtanh(),
        *_linear(512, num_classes),
    )


def mnist_cnn(num_classes: int = 10) -> nn.Sequential:
    """For 28x28 images: 1.6 million binary weights, 31 million multiply-accumulates an image.

    Shape: `[N, 1, 28, 28]` to `[N, num_classes]`.
    """
    require_positive(num_classes=num_classes)
    return nn.Sequential(
        *_conv(1, 64, pool=True, input_quantizer=None),  # to 14x14
        *_conv(64, 128, pool=True),  # to 7x7
        *_conv(128, 256, pool=True),  # to 3x3
        nn.Flatten(),
        *_linear(256 * 3 * 3, 512),
        nn.Hardtanh(),
        *_linear(512, num_classes),
    )


def _conv(
    in_channels: int,
    out_channels: int,
    *,
    pool: bool = False,
    input_quantizer: str | None = "ste_sign",
) -> list[nn.Module]:
    conv = bnn.BinaryConv2d(
        in_channels, out_channels, 3, padding=1, bias=False, input_quantizer=input_quantizer
    )
    return normalized(conv, pool=nn.MaxPool2d(2) if pool else None, activation=nn.Hardtanh())


def _linear(in_features: int, out_features: int) -> list[nn.Module]:
    return normalized(bnn.BinaryLinear(in_features, out_features, bias=False))
