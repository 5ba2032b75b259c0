"""BinaryNet for PyTorch as it is written now: an autograd Function makes new tensors of signs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import binarynet_old
from networks.recipes import Recipe

RECIPE = Recipe()  # nothing clamps the weights any more


class Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, allow_scale: bool = False) -> Tensor:
        output = input.clone()
        scale = output.abs().max() if allow_scale else 1
        return output.div(scale).sign().mul(scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class BinLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        input_b = Binarize.apply(input) if input.size(1) != 784 else input
        weight_b = Binarize.apply(self.weight)
        out = F.linear(input_b, weight_b)
        if self.bias is not None:
            self.bias.org = self.bias.data.clone()
            out += self.bias.view(1, -1).expand_as(out)
        return out


class BinConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        input_b = Binarize.apply(input) if input.size(1) != 3 else input
        weight_b = Binarize.apply(self.weight)
        out = F.conv2d(
            input_b, weight_b, None, self.stride, self.padding, self.dilation, self.groups
        )
        if self.bias is not None:
            self.bias.org = self.bias.data.clone()
            out += self.bias.view(1, -1, 1, 1).expand_as(out)
        return out


class VGG(binarynet_old.VGG):
    conv = BinConv2d
    linear = BinLinear
