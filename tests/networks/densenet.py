"""A dense net of this package's layers: every layer's bits come from all maps before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from networks.native import NativeRecipe

RECIPE = NativeRecipe()


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = bnn.BinaryConv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x))], dim=1)


class Transition(nn.Sequential):
    """Halves map and channels, with real weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
        )


class DenseNet(nn.Module):
    """For 32x32 images; `width` is how many channels every layer adds."""

    def __init__(
        self, num_classes: int = 10, width: int = 64, blocks: tuple[int, ...] = (6, 6, 6)
    ) -> None:
        super().__init__()
        channels = 2 * width
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for number, count in enumerate(blocks):
            if number > 0:
                layers.append(Transition(channels))
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, width))
                channels += width
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))
