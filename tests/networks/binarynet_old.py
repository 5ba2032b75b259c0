"""The way BinaryNet for PyTorch was written first: layers that overwrite what they are given.

`input.data` and `weight.data` become signs in place; the latent weight survives as an attribute of
the Parameter, `weight.org`. Whether an input is real is told by its width: 784 pixels or 3 colours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.recipes import Recipe


class OldRecipe(Recipe):
    """The optimizer steps on the latent weights, which stay in [-1, 1] with the biases."""

    learning_rate = 0.005

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for p in model.parameters():
            if hasattr(p, "org"):
                p.data.copy_(p.org)
        optimizer.step()
        for p in model.parameters():
            if hasattr(p, "org"):
                p.org.copy_(p.data.clamp_(-1, 1))


RECIPE = OldRecipe()


class BinLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.size(1) != 784:
            input.data = input.data.sign()
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        out = F.linear(input, self.weight)
        if self.bias is not None:
            self.bias.org = self.bias.data.clone()
            out += self.bias.view(1, -1).expand_as(out)
        return out


class BinConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if input.size(1) != 3:
            input.data = input.data.sign()
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        out = F.conv2d(
            input, self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )
        if self.bias is not None:
            self.bias.org = self.bias.data.clone()
            out += self.bias.view(1, -1, 1, 1).expand_as(out)
        return out


class VGG(nn.Module):
    """For 32x32 images; pools stand in front of BatchNorm."""

    conv: type[nn.Conv2d] = BinConv2d
    linear: type[nn.Linear] = BinLinear

    def __init__(self, num_classes: int = 10, width: int = 128) -> None:
        super().__init__()
        widths = [3 * width, 3 * width, 6 * width, 6 * width, 12 * width, 4 * width]
        layers: list[nn.Module] = []
        channels = 3
        for number, out in enumerate(widths):
            layers.append(self.conv(channels, out, kernel_size=3, stride=1, padding=1, bias=True))
            if number % 2 == 1:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            layers += [nn.BatchNorm2d(out), nn.Hardtanh(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        hidden = 8 * width
        self.classifier = nn.Sequential(
            self.linear(channels * 4 * 4, hidden, bias=True),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            self.linear(hidden, hidden, bias=True),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            self.linear(hidden, num_classes, bias=True),
            nn.BatchNorm1d(num_classes, affine=False),
            nn.LogSoftmax(dim=1),
        )
        self.flat = channels * 4 * 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(-1, self.flat)
        return self.classifier(x)


class AlexNet(nn.Module):
    """For 224x224 images."""

    def __init__(self, num_classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = 3 * width, 9 * width, 18 * width, 12 * width, 4 * width
        self.features = nn.Sequential(
            BinConv2d(3, c1, kernel_size=11, stride=4, padding=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.BatchNorm2d(c1),
            nn.Hardtanh(inplace=True),
            BinConv2d(c1, c2, kernel_size=5, padding=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.BatchNorm2d(c2),
            nn.Hardtanh(inplace=True),
            BinConv2d(c2, c3, kernel_size=3, padding=1),
            nn.BatchNorm2d(c3),
            nn.Hardtanh(inplace=True),
            BinConv2d(c3, c4, kernel_size=3, padding=1),
            nn.BatchNorm2d(c4),
            nn.Hardtanh(inplace=True),
            BinConv2d(c4, c5, kernel_size=3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.BatchNorm2d(c5),
            nn.Hardtanh(inplace=True),
        )
        hidden = 64 * width
        self.classifier = nn.Sequential(
            BinLinear(c5 * 6 * 6, hidden),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            BinLinear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            BinLinear(hidden, num_classes),
            nn.BatchNorm1d(num_classes),
            nn.LogSoftmax(dim=1),
        )
        self.flat = c5 * 6 * 6

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).view(-1, self.flat))


class BasicBlock(nn.Module):
    """The first convolution overwrites its input, so the shortcut needs a copy."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        do_bntan: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = BinConv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.tanh1 = nn.Hardtanh(inplace=True)
        self.conv2 = BinConv2d(planes, planes, 3, padding=1, bias=False)
        self.tanh2 = nn.Hardtanh(inplace=True)
        self.bn2 = nn.BatchNorm2d(planes)  # there even where do_bntan leaves it out
        self.downsample = downsample
        self.do_bntan = do_bntan

    def forward(self, x: Tensor) -> Tensor:
        residual = x.clone()
        out = self.tanh1(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        if self.downsample is not None:
            residual = self.downsample(residual)
        out += residual
        if self.do_bntan:
            out = self.tanh2(self.bn2(out))
        return out


class ResNet(nn.Module):
    """For 32x32 images; three stages of two blocks."""

    def __init__(self, num_classes: int = 10, width: int = 80) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = BinConv2d(3, width, 3, padding=1, bias=False)
        self.maxpool = lambda x: x
        self.bn1 = nn.BatchNorm2d(width)
        self.tanh1 = nn.Hardtanh(inplace=True)
        self.layer1 = self._make_layer(width, 2)
        self.layer2 = self._make_layer(2 * width, 2, stride=2)
        self.layer3 = self._make_layer(4 * width, 2, stride=2, do_bntan=False)
        self.avgpool = nn.AvgPool2d(8)
        self.bn2 = nn.BatchNorm1d(4 * width)
        self.tanh2 = nn.Hardtanh(inplace=True)
        self.fc = BinLinear(4 * width, num_classes)
        self.bn3 = nn.BatchNorm1d(num_classes)
        self.logsoftmax = nn.LogSoftmax(dim=1)

    def _make_layer(
        self, planes: int, blocks: int, stride: int = 1, do_bntan: bool = True
    ) -> nn.Sequential:
        """A stage; `do_bntan` is that of its last block."""
        downsample = None
        if stride != 1 or self.inplanes != planes:
            downsample = nn.Sequential(
                BinConv2d(self.inplanes, planes, 1, stride=stride, bias=False),
                nn.BatchNorm2d(planes),
            )
        layers = [BasicBlock(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes
        for _ in range(1, blocks - 1):
            layers.append(BasicBlock(planes, planes))
        layers.append(BasicBlock(planes, planes, do_bntan=do_bntan))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.maxpool(x)
        x = self.tanh1(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        x = self.tanh2(self.bn2(x))
        x = self.fc(x)
        x = self.bn3(x)
        return self.logsoftmax(x)


class MLP(nn.Module):
    """For 28x28 images; the last layer is real."""

    def __init__(self, num_classes: int = 10, width: int = 2048) -> None:
        super().__init__()
        hidden = 3 * width
        self.fc1 = BinLinear(784, hidden)
        self.htanh1 = nn.Hardtanh(inplace=True)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.fc2 = BinLinear(hidden, hidden)
        self.htanh2 = nn.Hardtanh(inplace=True)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.fc3 = BinLinear(hidden, hidden)
        self.htanh3 = nn.Hardtanh(inplace=True)
        self.bn3 = nn.BatchNorm1d(hidden)
        self.fc4 = nn.Linear(hidden, num_classes)
        self.logsoftmax = nn.LogSoftmax(dim=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 28 * 28)
        x = self.htanh1(self.bn1(self.fc1(x)))
        x = self.htanh2(self.bn2(self.fc2(x)))
        x = self.fc3(x)
        x = self.drop(x)
        x = self.htanh3(self.bn3(x))
        return self.logsoftmax(self.fc4(x))
