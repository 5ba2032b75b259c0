"""ReActNet-A: MobileNet's shape, learnt shifts around every sign and PReLU.

Channels double by two 1x1 convolutions of the same signs, side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.birealnet import BinaryActivation, HardBinaryConv
from networks.recipes import Recipe

RECIPE = Recipe()


class LearnableBias(nn.Module):
    def __init__(self, out_chn: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, out_chn, 1, 1), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class RPReLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = LearnableBias(channels)
        self.prelu = nn.PReLU(channels)
        self.after = LearnableBias(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.prelu(self.before(x)))


class Block(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.inplanes, self.planes, self.stride = inplanes, planes, stride
        self.shift1 = LearnableBias(inplanes)
        self.binary_3x3 = HardBinaryConv(inplanes, inplanes, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.relu1 = RPReLU(inplanes)
        self.shift2 = LearnableBias(inplanes)
        if inplanes == planes:
            self.binary_pw = HardBinaryConv(inplanes, planes, 1, padding=0)
            self.bn2 = nn.BatchNorm2d(planes)
        else:
            self.binary_pw_down1 = HardBinaryConv(inplanes, inplanes, 1, padding=0)
            self.binary_pw_down2 = HardBinaryConv(inplanes, inplanes, 1, padding=0)
            self.bn2_1 = nn.BatchNorm2d(inplanes)
            self.bn2_2 = nn.BatchNorm2d(inplanes)
        self.relu2 = RPReLU(planes)
        self.binary_activation = BinaryActivation()
        self.pooling = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out1 = self.binary_activation(self.shift1(x))
        out1 = self.bn1(self.binary_3x3(out1))
        if self.stride == 2:
            x = self.pooling(x)
        out1 = x + out1
        out1 = self.relu1(out1)

        out2 = self.binary_activation(self.shift2(out1))
        if self.inplanes == self.planes:
            out2 = self.bn2(self.binary_pw(out2))
            out2 += out1
        else:
            first = self.bn2_1(self.binary_pw_down1(out2))
            second = self.bn2_2(self.binary_pw_down2(out2))
            first += out1
            second += out1
            out2 = torch.cat([first, second], dim=1)
        return self.relu2(out2)


class ReActNetA(nn.Module):
    """For 224x224 images; `width` is the stem's."""

    def __init__(self, num_classes: int = 1000, width: int = 32) -> None:
        super().__init__()
        stage_out = [width * factor for factor in (1, 2, 4, 4, 8, 8, *[16] * 6, 32, 32)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.feature = nn.ModuleList()
        for number in range(1, len(stage_out)):
            inplanes, planes = stage_out[number - 1], stage_out[number]
            stride = 2 if inplanes != planes and number > 1 else 1
            self.feature.append(Block(inplanes, planes, stride))
        self.pool1 = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stage_out[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.feature:
            x = block(x)
        x = self.pool1(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)
