"""The convolutional networks of eBNN, made for microcontrollers: a few kilobytes with all weights.

Blocks of convolution, max-pool and BatchNorm; the next layer's sign is the nonlinearity. The last
BatchNorm gives the logits. The first layer takes the real image, or its signs with
`binary_input=True`: then give -1 for a background of 0, since the sign of 0 is +1.

Source: McDanel, Teerapittayanon, Kung, "Embedded Binarized Neural Networks", 2017
(arXiv:1709.02260), and its examples, kunglab/ebnn.
"""

from __future__ import annotations

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import normalized, require_input_size, require_positive


def ebnn_convnet(
    num_classes: int = 10,
    in_channels: int = 1,
    input_size: int = 28,
    *,
    filters: int = 10,
    binary_input: bool = False,
) -> nn.Sequential:
    """One convolution of stride 2, a max-pool, the classifier: 3,750 parameters.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 7.
        filters: channels of the convolution.
        binary_input: whether the first layer takes the image's signs.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: "Embedded Binarized Neural Networks", 2017 (arXiv:1709.02260).
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, filters=filters)
    require_input_size(input_size, 7)
    conv = bnn.BinaryConv2d(in_channels, filters, 3, stride=2, input_quantizer=_first(binary_input))
    features = filters * _pooled((input_size - 3) // 2 + 1) ** 2
    return nn.Sequential(
        *normalized(conv, pool=_pool()),
        nn.Flatten(),
        *normalized(bnn.BinaryLinear(features, num_classes)),
    )


def ebnn_alexnet(
    num_classes: int = 10,
    in_channels: int = 1,
    input_size: int = 28,
    *,
    filters: int = 10,
    binary_input: bool = False,
) -> nn.Sequential:
    """Five convolutions in AlexNet's order, the classifier: 6 thousand parameters.

    Shape: `[N, in_channels, input_size, input_size]` to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        input_size: height and width of the images, at least 19.
        filters: channels of each convolution.
        binary_input: whether the first layer takes the image's signs.

    Raises:
        ValueError: a size is not positive, or `input_size` is too small.

    Source: "Embedded Binarized Neural Networks", 2017 (arXiv:1709.02260), its code's `AlexNet`.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, filters=filters)
    require_input_size(input_size, 19)
    first = bnn.BinaryConv2d(in_channels, filters, 5, input_quantizer=_first(binary_input))
    features = filters * _pooled(_pooled(_pooled(input_size - 4))) ** 2
    return nn.Sequential(
        *normalized(first, pool=_pool()),
        *normalized(bnn.BinaryConv2d(filters, filters, 5, padding=2), pool=_pool()),
        *normalized(bnn.BinaryConv2d(filters, filters, 3, padding=1)),
        *normalized(bnn.BinaryConv2d(filters, filters, 3, padding=1)),
        *normalized(bnn.BinaryConv2d(filters, filters, 3, padding=1), pool=_pool()),
        nn.Flatten(),
        *normalized(bnn.BinaryLinear(features, num_classes)),
    )


def _first(binary_input: bool) -> str | None:
    return "ste_sign" if binary_input else None


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2)


def _pooled(size: int) -> int:
    return (size - 3) // 2 + 1
