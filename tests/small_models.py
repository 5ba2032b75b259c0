"""Two packed layers with whatever a test puts between them."""

from __future__ import annotations

from torch import nn

from bnn_ext import nn as bnn

MAP = (2, 3, 12, 13)  # an input of two_convs


def two_convs(*between: nn.Module) -> nn.Sequential:
    """Two packed convolutions of 3 -> 33 -> 5 channels, and what stands between them."""
    model = nn.Sequential(bnn.BinaryConv2d(3, 33, 3), *between, bnn.BinaryConv2d(33, 5, 3))
    return with_statistics(model)


def two_linears(*between: nn.Module) -> nn.Sequential:
    model = nn.Sequential(bnn.BinaryLinear(20, 33), *between, bnn.BinaryLinear(33, 5))
    return with_statistics(model)


def with_statistics(model: nn.Module) -> nn.Module:
    """Random statistics and parameters in every BatchNorm; eval mode."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 3)
            norm.running_var.uniform_(1, 20)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model.eval()
