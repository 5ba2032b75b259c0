"""Bi-Real Net: a shortcut around every single binary convolution.

Stem, 1x1 shortcuts and classifier are real; shortcuts that halve the map take means of 2x2 first.
With `weight_quantizer=None` the binary convolutions have real weights and binary inputs: the first
of two training steps. Its state_dict fits the network of the second step, name for name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import require_positive, scaled, stages
from bnn_ext.quantizers import Quantizer

_WIDTHS = (64, 128, 256, 512)


def birealnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    weight_quantizer: str | Quantizer | None = "magnitude_aware_sign",
) -> nn.Sequential:
    """Bi-Real Net of 18 layers: 11.7 million parameters.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 224x224.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor of all widths.
        weight_quantizer: of the binary convolutions; None leaves their weights real.

    Raises:
        ValueError: a size is not positive, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: Liu, Wu, Luo, Yang, Liu, Cheng, "Bi-Real Net", 2018 (arXiv:1808.00278).
    """
    block = partial(_block, weight_quantizer=weight_quantizer)
    return for_imagenet((4, 4, 4, 4), block, num_classes, in_channels, width)


def birealnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    weight_quantizer: str | Quantizer | None = "magnitude_aware_sign",
) -> nn.Sequential:
    """Bi-Real Net of 34 layers: 21.8 million parameters.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 224x224.

    Args:
        num_classes, in_channels, width, weight_quantizer: as for `birealnet18`.

    Raises:
        ValueError: a size is not positive, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: "Bi-Real Net", 2018 (arXiv:1808.00278).
    """
    block = partial(_block, weight_quantizer=weight_quantizer)
    return for_imagenet((6, 8, 12, 6), block, num_classes, in_channels, width)


def binary_conv(
    inputs: int,
    outputs: int,
    stride: int = 1,
    kernel: int = 3,
    *,
    input_quantizer: str | Quantizer = "approx_sign",
    weight_quantizer: str | Quantizer | None,
) -> bnn.BinaryConv2d:
    """The binary convolution of this family: Bi-Real's gradient, no bias."""
    return bnn.BinaryConv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2,
        bias=False,
        input_quantizer=input_quantizer,
        weight_quantizer=weight_quantizer,
    )


def real_conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    """The convolution of a shortcut."""
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def shortcut(
    inputs: int,
    outputs: int,
    stride: int,
    conv: Callable[[int, int], nn.Module] = real_conv1x1,
) -> nn.Module:
    """Means of 2x2 where the map halves, a 1x1 convolution and BatchNorm for other channels."""
    # Of an odd map the last row and column count too, as in the convolution of stride 2.
    modules: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
    if inputs != outputs:
        modules += [conv(inputs, outputs), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*modules)


def _block(
    inputs: int, outputs: int, stride: int, *, weight_quantizer: str | Quantizer | None
) -> bnn.Residual:
    branch = nn.Sequential(
        binary_conv(inputs, outputs, stride, weight_quantizer=weight_quantizer),
        nn.BatchNorm2d(outputs),
    )
    return bnn.Residual(branch, shortcut(inputs, outputs, stride))


def for_imagenet(
    depths: Sequence[int],
    block: Callable[[int, int, int], bnn.Residual],
    num_classes: int,
    in_channels: int,
    width: float,
) -> nn.Sequential:
    """Real stem, four stages of blocks, real classifier; the blocks as for `blocks.stages`."""
    require_positive(num_classes=num_classes, in_channels=in_channels)
    widths = [scaled(channels, width) for channels in _WIDTHS]
    return nn.Sequential(
        nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.MaxPool2d(3, stride=2, padding=1),
        *stages(block, widths[0], widths, depths),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )
