"""eBNN: blocks of convolution, max-pool, BatchNorm and sign, with nothing but bits between them.

A sign of 0 is +1 here. In eval mode the networks give probabilities, in training logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.recipes import Recipe


class EbnnRecipe(Recipe):
    learning_rate = 0.003


RECIPE = EbnnRecipe()


class BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, torch.ones_like(weight), -torch.ones_like(weight))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


class BST(torch.autograd.Function):
    """Binary straight-through: the sign, its gradient 0 where |x| > 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1)


class ConvPoolBNBST(nn.Module):
    """Of a real or a binary map; without `pool` no pool."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        pool: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
        self.pool = pool
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        h = F.conv2d(x, BinaryWeight.apply(conv.weight), conv.bias, conv.stride, conv.padding)
        if self.pool is not None:
            h = F.max_pool2d(h, *self.pool)
        return BST.apply(self.bn(h))


class BinaryLinearBNSoftmax(nn.Module):
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, num_classes)
        self.bn = nn.BatchNorm1d(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        h = self.bn(F.linear(x, BinaryWeight.apply(self.fc.weight), self.fc.bias))
        return h if self.training else F.softmax(h, dim=1)


class ConvNet(nn.Module):
    """For 28x28 images: one block, then the classifier."""

    def __init__(self, num_classes: int = 10, width: int = 10) -> None:
        super().__init__()
        self.l1 = ConvPoolBNBST(1, width, 3, stride=2, pool=(3, 2))
        self.l2 = BinaryLinearBNSoftmax(width * 6 * 6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x))


class AlexNet(nn.Module):
    """For 28x28 images: five blocks, then the classifier."""

    def __init__(self, num_classes: int = 10, width: int = 10) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                ConvPoolBNBST(1, width, 5, pool=(3, 2)),
                ConvPoolBNBST(width, width, 5, padding=2, pool=(3, 2)),
                ConvPoolBNBST(width, width, 3, padding=1),
                ConvPoolBNBST(width, width, 3, padding=1),
                ConvPoolBNBST(width, width, 3, padding=1, pool=(3, 2)),
            ]
        )
        self.classifier = BinaryLinearBNSoftmax(width * 2 * 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)
