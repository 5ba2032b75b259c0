"""The network of BNEW, "Training Binarized Neural Networks the Easy Way", and its ablations."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.birealnet import binary_conv, real_conv1x1, shortcut
from bnn_ext.models.blocks import require_positive, stages
from bnn_ext.quantizers import Quantizer


def brn(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 16,
    blocks: int = 6,
    input_quantizer: str | Quantizer = "approx_sign",
    weight_quantizer: str | Quantizer | None = "ste_sign",
    scale: bool = True,
    shift: bool = True,
    prelu: bool = True,
    binary_ends: bool = False,
    binary_shortcuts: bool = False,
) -> nn.Sequential:
    """Bi-Real network of 20 layers for CIFAR: 276 thousand parameters, 267 thousand of them binary.

    A real 3x3 convolution and a max-pool, then three stages of blocks with one binary convolution
    each:

        x -> shift -> sign -> 3x3 convolution -> scale -> BatchNorm -> + x -> shift, PReLU, shift

    BNEW trains it with `weight_quantizer=None` and drives the weights to ±1 itself; the state_dict
    then fits the network with `ste_sign`, which computes the same with them. The names of the
    ablations stand for settings: `nsbrn` has `scale=False`, `stebrn` `input_quantizer="ste_sign"`,
    `nsstebrn` both, `noshiftbrn` `shift=False`, `noprelubrn` `prelu=False`, `nofloatbrn`
    `binary_ends=True` and `norealbrn` `binary_shortcuts=True`.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 32x32.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the first stage; each further stage has twice as many.
        blocks: blocks of each stage.
        input_quantizer: of the binary convolutions.
        weight_quantizer: of all layers with binary weights; None leaves their weights real.
        scale: whether each channel's sums have a learned scale.
        shift: whether the learned shifts are there, in front of the sign and around the PReLU.
        prelu: whether the activation is a PReLU per channel and not a ReLU.
        binary_ends: whether first convolution and classifier have binary weights, on real inputs.
        binary_shortcuts: whether the 1x1 convolutions of the shortcuts have, on real inputs.

    Raises:
        ValueError: a size is not positive, or a quantizer's name is unknown.
        TypeError: a quantizer is neither a name nor a callable.

    Source: Paren, Poudel, "Training Binarized Neural Networks the Easy Way", BMVC 2022, and its
    code, Alasdair-P/bnew.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, width=width, blocks=blocks)
    binary_weights: dict[str, Any] = {"input_quantizer": None, "weight_quantizer": weight_quantizer}

    def conv1x1(inputs: int, outputs: int) -> nn.Module:
        if binary_shortcuts:
            return bnn.BinaryConv2d(inputs, outputs, 1, bias=False, **binary_weights)
        return real_conv1x1(inputs, outputs)

    def activation(channels: int) -> nn.Module:
        kink = nn.PReLU(channels) if prelu else nn.ReLU()
        if not shift:
            return kink
        return nn.Sequential(bnn.LearnableBias(channels), kink, bnn.LearnableBias(channels))

    def block(inputs: int, outputs: int, stride: int) -> bnn.Residual:
        branch = nn.Sequential(
            bnn.LearnableBias(inputs) if shift else nn.Identity(),
            binary_conv(
                inputs,
                outputs,
                stride,
                input_quantizer=input_quantizer,
                weight_quantizer=weight_quantizer,
            ),
            bnn.LearnableScale(outputs) if scale else nn.Identity(),
            nn.BatchNorm2d(outputs),
        )
        around = shortcut(inputs, outputs, stride, conv1x1)
        return bnn.Residual(branch, around, activation(outputs))

    if binary_ends:
        first: nn.Module = bnn.BinaryConv2d(
            in_channels, width, 3, padding=1, bias=False, **binary_weights
        )
        last: nn.Module = bnn.BinaryLinear(4 * width, num_classes, **binary_weights)
    else:
        first = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        last = nn.Linear(4 * width, num_classes)
    return nn.Sequential(
        first,
        nn.BatchNorm2d(width),
        nn.MaxPool2d(3, stride=2, padding=1),
        *stages(block, width, (width, 2 * width, 4 * width), (blocks,) * 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        last,
    )


nsbrn = partial(brn, scale=False)
stebrn = partial(brn, input_quantizer="ste_sign")
nsstebrn = partial(brn, scale=False, input_quantizer="ste_sign")
noshiftbrn = partial(brn, shift=False)
noprelubrn = partial(brn, prelu=False)
nofloatbrn = partial(brn, binary_ends=True)
norealbrn = partial(brn, binary_shortcuts=True)
