"""BNEW's network: weights that training drives to +-1, so that plain Conv2d hold them at the end.

Forward has no weight quantizer at all. Activations are shifted, binarized, and scaled by channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks.reactnet import LearnableBias
from networks.recipes import Recipe


class BnewRecipe(Recipe):
    """A concave regularizer pushes weights out to the ends of [-1, 1]; then they are frozen."""

    strength = 0.001

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for weight in binary_weights(model):
            weight.data.add_(2 * self.strength * weight.data).clamp_(-1, 1)
        optimizer.step()

    def deploy(self, model: nn.Module) -> None:
        for weight in binary_weights(model):
            weight.data = torch.sign(weight.data)
            weight.requires_grad = False


RECIPE = BnewRecipe()


def binary_weights(model: nn.Module) -> list[nn.Parameter]:
    """All but vectors, the first and the last layer, shifts and shortcuts."""
    return [
        p
        for name, p in model.named_parameters()
        if p.dim() == 4
        and name != "conv1.weight"
        and not any(word in name for word in ("bias", "downsample", "scale"))
    ]


class ApproxSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * torch.clamp(2 - 2 * x.abs(), min=0)


class BinaryActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ApproxSign.apply(x)


class LearnableScale(nn.Module):
    def __init__(self, out_chn: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, out_chn, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.expand_as(x)


class BasicBlock(nn.Module):
    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.move0 = LearnableBias(inplanes)
        self.binary_activation = BinaryActivation()
        self.conv = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.rescale = LearnableScale(planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.move1 = LearnableBias(planes)
        self.prelu = nn.PReLU(planes)
        self.move2 = LearnableBias(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.binary_activation(self.move0(x))
        out = self.rescale(self.conv(out))
        out = self.bn1(out)
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.move2(self.prelu(self.move1(out)))


class BiRealResNet20(nn.Module):
    """For 32x32 images, which the stem's pool halves."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(width, 6)
        self.layer2 = self._make_layer(2 * width, 6, stride=2)
        self.layer3 = self._make_layer(4 * width, 6, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(4 * width, num_classes)

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
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)
