"""BinaryConnect: binary weights, real activations, a BatchNorm of its own with ReLU inside.

Running statistics are Parameters without gradient, and the deviation is what is kept and divided
by, not the variance. Weights are +-H up to the rounding of the straight-through sum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.recipes import Recipe


class BinaryConnectRecipe(Recipe):
    """Squared hinge loss; weights go further than Adam says in wide layers and stay in [-H, H]."""

    learning_rate = 0.003

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        target = 2.0 * F.one_hot(labels, output.shape[1]) - 1.0
        return torch.mean(torch.clamp(1.0 - target * output, min=0.0) ** 2)

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        layers = [m for m in model.modules() if isinstance(m, (BinaryDense, BinaryConv))]
        before = [layer.W.data.clone() for layer in layers]
        optimizer.step()
        for layer, old in zip(layers, before, strict=True):
            moved = old + layer.W_LR_scale * (layer.W.data - old)
            layer.W.data = moved.clamp(-layer.H, layer.H)


RECIPE = BinaryConnectRecipe()


def hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp((x + 1.0) / 2.0, 0, 1)


def binarize(W: Tensor, H: float) -> Tensor:
    p = torch.round(hard_sigmoid(W / H))
    Wb = torch.where(p == 1, H, -H)
    return Wb.detach() + W - W.detach()


def glorot(fan_in: int, fan_out: int) -> float:
    return 1.0 / math.sqrt(1.5 / (fan_in + fan_out))


class BinaryDense(nn.Module):
    def __init__(self, in_features: int, out_features: int, H: float = 1.0) -> None:
        super().__init__()
        self.H = H
        self.W_LR_scale = glorot(in_features, out_features)
        self.W = nn.Parameter(torch.empty(out_features, in_features).uniform_(-H, H))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, binarize(self.W, self.H))


class BinaryConv(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, k: int = 3, padding: int = 1, H: float = 1.0
    ) -> None:
        super().__init__()
        self.H = H
        self.W_LR_scale = glorot(k * k * in_channels, k * k * out_channels)
        self.W = nn.Parameter(torch.empty(out_channels, in_channels, k, k).uniform_(-H, H))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, binarize(self.W, self.H), padding=self.padding)


class BatchNormLayer(nn.Module):
    def __init__(self, size: int, momentum: float = 0.1, eps: float = 1e-4, relu: bool = True):
        super().__init__()
        self.momentum, self.eps, self.relu = momentum, eps, relu
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))
        self.running_mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.running_std = nn.Parameter(torch.ones(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            dims = (0, 2, 3) if x.dim() == 4 else (0,)
            mean, std = x.mean(dims), x.std(dims, unbiased=False)
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.running_std.mul_(1 - self.momentum).add_(self.momentum * std)
        else:
            mean, std = self.running_mean, self.running_std
        mean, std, gamma, beta = (
            t.view(1, -1, 1, 1) if x.dim() == 4 else t for t in (mean, std, self.gamma, self.beta)
        )
        y = (x - mean) * gamma / (std + self.eps) + beta
        return F.relu(y) if self.relu else y


class CNN(nn.Module):
    """For 32x32 images."""

    def __init__(self, num_classes: int = 10, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width):
            layers += [BinaryConv(channels, out), BatchNormLayer(out)]
            layers += [BinaryConv(out, out), nn.MaxPool2d(2), BatchNormLayer(out)]
            channels = out
        self.conv_layers = nn.ModuleList(layers)
        hidden = 8 * width
        self.fc1, self.bn1 = BinaryDense(channels * 4 * 4, hidden), BatchNormLayer(hidden)
        self.fc2, self.bn2 = BinaryDense(hidden, hidden), BatchNormLayer(hidden)
        self.fc3, self.bn3 = (
            BinaryDense(hidden, num_classes),
            BatchNormLayer(num_classes, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv_layers:
            x = layer(x)
        x = torch.flatten(x, 1)
        x = self.bn1(self.fc1(x))
        x = self.bn2(self.fc2(x))
        return self.bn3(self.fc3(x))
