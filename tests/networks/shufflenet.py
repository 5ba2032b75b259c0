"""ShuffleNet, first and second version, of this package's layers.

Grouped and depthwise convolutions, channels that are split, joined and shuffled by views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_ext import nn as bnn
from networks.native import NativeRecipe

RECIPE = NativeRecipe()
GROUPS = 3


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn."""
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w)
    x = x.transpose(1, 2).contiguous()
    return x.view(n, c, h, w)


def binary_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list:
    return [
        bnn.BinaryConv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
    ]


class GroupedUnit(nn.Module):
    """The first version's: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*binary_conv(channels, channels, 1, groups=GROUPS))
        self.expand = nn.Sequential(
            *binary_conv(channels, channels, 3, groups=channels),
            *binary_conv(channels, channels, 1, groups=GROUPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        shuffled = channel_shuffle(F.hardtanh(self.reduce(x)), GROUPS)
        return x + self.expand(shuffled)


class SplitUnit(nn.Module):
    """The second version's: one half of the channels passes by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *binary_conv(half, half, 1),
            nn.Hardtanh(inplace=True),
            *binary_conv(half, half, 3, groups=half),
            *binary_conv(half, half, 1),
            nn.Hardtanh(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((passed, self.branch(changed)), dim=1), 2)


class DownUnit(nn.Module):
    """Half the map, twice the channels: both branches see all of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            *binary_conv(channels, channels, 3, stride=2, groups=channels),
            *binary_conv(channels, channels, 1),
            nn.Hardtanh(),
        )
        self.right = nn.Sequential(
            *binary_conv(channels, channels, 1),
            nn.Hardtanh(),
            *binary_conv(channels, channels, 3, stride=2, groups=channels),
            *binary_conv(channels, channels, 1),
            nn.Hardtanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)


class LopsidedUnit(nn.Module):
    """Parts of different widths, joined in the other order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = [channels // 3, channels - channels // 3]
        self.branch = nn.Sequential(*binary_conv(self.sizes[1], self.sizes[1], 3))

    def forward(self, x: Tensor) -> Tensor:
        small, large = torch.split(x, self.sizes, dim=1)
        return torch.cat([self.branch(large), small], dim=1)


class ShuffleNet(nn.Module):
    """For 32x32 images; `width` is a multiple of 6."""

    def __init__(self, num_classes: int = 10, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.units = nn.Sequential(
            GroupedUnit(width),
            SplitUnit(width),
            DownUnit(width),
            SplitUnit(2 * width),
            GroupedUnit(2 * width),
            LopsidedUnit(2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(self.stem(x))
        return self.classifier(self.pool(x).flatten(1))
