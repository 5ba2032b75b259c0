"""Gradients of convolutions and products of ±1 in training, on the CPU.

They are sums of real gradients with the signs of the other factor, from whose packed bits tables of
signed sums are read: a quarter of the additions. Each sum is float32, in an order of its own that
is the same at every CPU level and with any number of threads; of `n` numbers `g` it is at most
`(n + 3) * 2**-24 * sum(abs(g))` off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.binary_weight import binary_weight_conv2d, binary_weight_linear
from bnn_ext.ops.packing import pack


def linear_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `x @ weight.T` to `x`: `[N, out]` and ±1 `[out, in]` to `[N, in]`."""
    return binary_weight_linear(grad, pack(weight.t()), weight.shape[0])


def conv2d_input(
    grad: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The gradient to `x` of `conv2d(x, weight)` with stride 1.

    It is the convolution of the gradient with the kernel turned around, inputs and outputs swapped.

    Args:
        grad: `[N, out, H', W']`.
        weight: ±1 `[out, in / groups, kh, kw]`.
        padding: at most `dilation * (k - 1)`.

    Returns:
        `[N, in, H, W]`, channels last in memory.
    """
    grouped = weight.unflatten(0, (groups, -1))
    turned = grouped.flip(3, 4).permute(0, 2, 3, 4, 1).flatten(0, 1)
    margin = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    return binary_weight_conv2d(grad, pack(turned), weight.shape[0], 1, margin, dilation, groups)


def conv2d_weight(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient to `w` of `conv2d(input, w)`.

    Args:
        grad: `[N, out, H', W']`.
        input: ±1 `[N, in, H, W]`.
        kernel_size: height and width.

    Returns:
        `[out, in / groups, *kernel_size]`, channels last in memory.
    """
    if input.stride(1) == 1:  # packed fastest where neighbours in memory become rows
        bits = pack(input.permute(2, 3, 1, 0)).permute(2, 0, 1, 3)
    else:
        bits = pack(input.permute(1, 2, 3, 0))
    return torch.ops.bnn_ext.conv2d_weight_gradient(
        grad, bits, kernel_size, stride, padding, dilation, groups
    )


@torch.library.register_fake("bnn_ext::conv2d_weight_gradient")
def _(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    shape = grad.shape[1], *kernel_size, input.shape[0] // groups
    return grad.new_empty(shape).permute(0, 3, 1, 2)
