"""Two images in, two answers out: one binary trunk of this package's layers sees both images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from networks.native import NativeRecipe

RECIPE = NativeRecipe()


class TwoHeads(nn.Module):
    """For two images of 24x24; gives class scores and the shift between the images."""

    def __init__(self, num_classes: int = 7, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            bnn.BinaryConv2d(3, width, 5, stride=2, padding=2, input_quantizer=None),
            nn.BatchNorm2d(width),
            nn.Hardtanh(),
            bnn.BinaryConv2d(width, 2 * width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(2 * width),
            nn.Hardtanh(),
            bnn.BinaryConv2d(2 * width, width, 3, bias=False),
            nn.BatchNorm2d(width),
        )
        self.classes = nn.Sequential(
            bnn.BinaryLinear(2 * width * 4 * 4, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.PReLU(),
            nn.Linear(2 * width, num_classes),
        )
        self.shift = bnn.BinaryLinear(width * 4 * 4, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        first, second = self.trunk(left), self.trunk(right)
        both = torch.cat([first, second], dim=1).flatten(1)
        return {"classes": self.classes(both), "shift": self.shift((first - second).flatten(1))}
