"""ReActNet: learned thresholds in front of the sign, PReLUs shifted by learned amounts behind it.

Stem and classifier are real. With `weight_quantizer=None` the binary convolutions have real weights
and binary inputs: the first of two training steps. Its state_dict fits the network of the second
step, name for name. Source: Liu, Shen, Savvides, Cheng, "ReActNet", 2020 (arXiv:2003.03488).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext.models.birealnet import binary_conv, for_imagenet, shortcut
from bnn_ext.models.blocks import require_positive, scaled
from bnn_ext.quantizers import Quantizer

# Output channels of the stem and of each pair of blocks. Where they double, the map halves, except
# behind the stem, which has halved it already.
_CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


def reactnet_a(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    weight_quantizer: str | Quantizer | None = "magnitude_aware_sign",
) -> nn.Sequential:
    """ReActNet-A, on the frame of MobileNet: 29.3 million parameters.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 224x224.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor of all widths.
        weight_quantizer: of the binary convolutions; None leaves their weights real.

    Raises:
        ValueError: a size is not positive, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: "ReActNet", 2020 (arXiv:2003.03488), section 4.1. Where the channels double, the paper's
    two 1x1 convolutions of the same input are here one with twice the outputs, which is the same.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    stem = scaled(_CHANNELS[0], width)
    channels = [stem * (count // _CHANNELS[0]) for count in _CHANNELS]
    blocks = []
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        stride = 2 if inputs != outputs and i > 0 else 1
        blocks.append(_block(inputs, inputs, stride, weight_quantizer=weight_quantizer))
        blocks.append(_pointwise(inputs, outputs, weight_quantizer))
    return nn.Sequential(
        nn.Conv2d(in_channels, stem, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels[-1], num_classes),
    )


def reactnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    weight_quantizer: str | Quantizer | None = "magnitude_aware_sign",
) -> nn.Sequential:
    """ReAct-ResNet18, on the frame of Bi-Real Net 18: 11.7 million parameters.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 224x224.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor of all widths.
        weight_quantizer: of the binary convolutions; None leaves their weights real.

    Raises:
        ValueError: a size is not positive, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: "ReActNet", 2020 (arXiv:2003.03488), section 5.2.
    """
    block = partial(_block, weight_quantizer=weight_quantizer)
    return for_imagenet((4, 4, 4, 4), block, num_classes, in_channels, width)


def _block(
    inputs: int, outputs: int, stride: int, *, weight_quantizer: str | Quantizer | None
) -> bnn.Residual:
    """A 3x3 convolution of shifted signs, its shortcut, a shifted PReLU."""
    branch = nn.Sequential(
        bnn.LearnableBias(inputs),
        binary_conv(inputs, outputs, stride, weight_quantizer=weight_quantizer),
        nn.BatchNorm2d(outputs),
    )
    return bnn.Residual(branch, shortcut(inputs, outputs, stride), bnn.RPReLU(outputs))


def _pointwise(inputs: int, outputs: int, weight_quantizer: str | Quantizer | None) -> bnn.Residual:
    """The same with a 1x1 convolution, which may double the channels."""
    branch = nn.Sequential(
        bnn.LearnableBias(inputs),
        binary_conv(inputs, outputs, kernel=1, weight_quantizer=weight_quantizer),
        nn.BatchNorm2d(outputs),
    )
    return bnn.Residual(branch, Twice() if outputs != inputs else None, bnn.RPReLU(outputs))


class Twice(nn.Module):
    """All channels twice: `[N, C, H, W]` to `[N, 2C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)
