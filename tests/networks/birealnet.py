"""Bi-Real Net: a real shortcut around every binary convolution; gradients by detached differences.

Forward computes `signs.detach() - smooth.detach() + smooth`: the value of `signs` up to float
rounding, the gradient of `smooth`. Weights lie in one flat column, and start all positive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.recipes import Recipe

RECIPE = Recipe()


class BinaryActivation(nn.Module):
    """The sign, with the gradient of a curve of two parabolas."""

    def forward(self, x: Tensor) -> Tensor:
        out_forward = torch.sign(x)
        below = (x < -1).type(torch.float32)
        negative = (x < 0).type(torch.float32)
        inside = (x < 1).type(torch.float32)
        out1 = (-1) * below + (x * x + 2 * x) * (1 - below)
        out2 = out1 * negative + (-x * x + 2 * x) * (1 - negative)
        out3 = out2 * inside + 1 * (1 - inside)
        return out_forward.detach() - out3.detach() + out3


class HardBinaryConv(nn.Module):
    """Signs times the filter's mean magnitude."""

    def __init__(
        self, in_chn: int, out_chn: int, kernel_size: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.shape = (out_chn, in_chn, kernel_size, kernel_size)
        count = out_chn * in_chn * kernel_size * kernel_size
        self.weights = nn.Parameter(torch.rand((count, 1)) * 0.001)

    def forward(self, x: Tensor) -> Tensor:
        real_weights = self.weights.view(self.shape)
        scaling_factor = torch.mean(
            torch.mean(torch.mean(abs(real_weights), dim=3, keepdim=True), dim=2, keepdim=True),
            dim=1,
            keepdim=True,
        )
        scaling_factor = scaling_factor.detach()
        binary_weights_no_grad = scaling_factor * torch.sign(real_weights)
        cliped_weights = torch.clamp(real_weights, -1.0, 1.0)
        binary_weights = binary_weights_no_grad.detach() - cliped_weights.detach() + cliped_weights
        return F.conv2d(x, binary_weights, stride=self.stride, padding=self.padding)


class BasicBlock(nn.Module):
    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.binary_activation = BinaryActivation()
        self.binary_conv = HardBinaryConv(inplanes, planes, stride=stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.binary_activation(x)
        out = self.binary_conv(out)
        out = self.bn1(out)
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return out


class BiRealNet(nn.Module):
    """Of 18 layers with four blocks in each of four stages; for 224x224 images."""

    def __init__(self, num_classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(width, 4)
        self.layer2 = self._make_layer(2 * width, 4, stride=2)
        self.layer3 = self._make_layer(4 * width, 4, stride=2)
        self.layer4 = self._make_layer(8 * width, 4, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, num_classes)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        downsample = None
        if stride != 1:
            downsample = nn.Sequential(
                nn.AvgPool2d(kernel_size=2, stride=stride),
                nn.Conv2d(self.inplanes, planes, kernel_size=1, bias=False),
                nn.BatchNorm2d(planes),
            )
        layers = [BasicBlock(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes
        layers += [BasicBlock(planes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)
