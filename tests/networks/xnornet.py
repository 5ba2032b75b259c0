"""XNOR-Net for CIFAR-10, a network in network: the trainer binarizes the weights, not the model.

The model's Conv2d are ordinary; around each forward a helper puts signs times the filter's mean
magnitude into them. Inputs go through BatchNorm and sign in front of each binary convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks.recipes import Recipe


class XnorRecipe(Recipe):
    def backward(self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor) -> float:
        bin_op = BinOp(model)
        bin_op.binarize()
        loss = super().backward(model, inputs, labels)
        bin_op.restore()
        bin_op.update_gradients()
        return loss

    def deploy(self, model: nn.Module) -> None:
        BinOp(model).binarize()


RECIPE = XnorRecipe()


class BinActive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.sign()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[input.ge(1)] = 0
        grad_input[input.le(-1)] = 0
        return grad_input


class BinOp:
    """Swaps the weights of all convolutions but the first and the last for binary ones."""

    def __init__(self, model: nn.Module) -> None:
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        self.target_params = [conv.weight for conv in convs[1:-1]]
        self.saved_params: list[Tensor] = []

    def binarize(self) -> None:
        for weight in self.target_params:
            weight.data.sub_(weight.data.mean(1, keepdim=True)).clamp_(-1.0, 1.0)
            self.saved_params.append(weight.data.clone())
            weight.data = weight.data.sign().mul(self._scale(weight.data).expand_as(weight.data))

    def restore(self) -> None:
        for weight, saved in zip(self.target_params, self.saved_params, strict=True):
            weight.data.copy_(saved)

    def update_gradients(self) -> None:
        """The gradient of the binary weights to that of the real ones, larger in large filters."""
        for weight in self.target_params:
            real, grad, sign = weight.data, weight.grad.data, weight.data.sign()
            through_sign = grad * self._scale(real) * (real.abs() <= 1)
            through_scale = sign * (grad * sign).mean((1, 2, 3), keepdim=True)
            count = real[0].nelement()
            weight.grad.data = (through_sign + through_scale) * (1 - 1 / real.size(1)) * count

    @staticmethod
    def _scale(weight: Tensor) -> Tensor:
        return weight.abs().mean((1, 2, 3), keepdim=True)


class BinConv2d(nn.Module):
    def __init__(
        self,
        input_channels: int,
        output_channels: int,
        kernel_size: int = 1,
        padding: int = 0,
        dropout: float = 0,
    ) -> None:
        super().__init__()
        self.dropout_ratio = dropout
        if dropout != 0:
            self.dropout = nn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(input_channels, eps=1e-4, momentum=0.1, affine=True)
        self.conv = nn.Conv2d(input_channels, output_channels, kernel_size, padding=padding)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        x = BinActive.apply(x)
        if self.dropout_ratio != 0:
            x = self.dropout(x)
        x = self.conv(x)
        return self.relu(x)


class NIN(nn.Module):
    """For 32x32 images; 192, 160 and 96 channels with a width of 32."""

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        wide, middle, narrow = 6 * width, 5 * width, 3 * width
        self.xnor = nn.Sequential(
            nn.Conv2d(3, wide, kernel_size=5, padding=2),
            nn.BatchNorm2d(wide, eps=1e-4, momentum=0.1, affine=False),
            nn.ReLU(inplace=True),
            BinConv2d(wide, middle),
            BinConv2d(middle, narrow),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            BinConv2d(narrow, wide, kernel_size=5, padding=2, dropout=0.5),
            BinConv2d(wide, wide),
            BinConv2d(wide, wide),
            nn.AvgPool2d(kernel_size=3, stride=2, padding=1),
            BinConv2d(wide, wide, kernel_size=3, padding=1, dropout=0.5),
            BinConv2d(wide, wide),
            nn.BatchNorm2d(wide, eps=1e-4, momentum=0.1, affine=False),
            nn.Conv2d(wide, num_classes, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(kernel_size=8, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.data.clamp_(min=0.01)
        x = self.xnor(x)
        return x.view(x.size(0), -1)
