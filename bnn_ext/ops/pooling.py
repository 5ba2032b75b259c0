"""Pooling of packed maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by_kernel
from bnn_ext.ops.checks import Pair, check_flip, check_supported, check_tensor, pair


def _pool_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # torch's rule: the last window starts inside the input or its left padding.
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


@checked_by_kernel
def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    minimum: Tensor | None = None,
) -> Tensor:
    """Max-pool of a packed ±1 map: the or of the bits in each window.

    Args:
        input: packed NHWC map `[N, H, W, words]`.
        kernel_size, stride, padding, dilation, ceil_mode: as for `torch.nn.functional.max_pool2d`.
        minimum: packed `[words]`; channels whose bit is set take the minimum (the and) instead, as
            a decreasing function after a max-pool of its argument needs.

    Returns:
        packed NHWC map `[N, H', W', words]`.
    """
    check_tensor("input", input, (torch.int32,), rank=4)
    check_supported("input", input)
    kernel_size = pair("kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    dilation = pair("dilation", dilation, 1)
    for axis in (0, 1):
        if 2 * padding[axis] > kernel_size[axis]:
            raise ValueError(
                f"padding must be at most half of kernel_size {kernel_size}, found {padding}"
            )
        size = input.shape[1 + axis]
        window = (kernel_size[axis], stride[axis], padding[axis], dilation[axis])
        if size < 1 or _pool_size(size, *window, ceil_mode) < 1:
            raise ValueError(
                f"kernel_size {kernel_size} with dilation {dilation} does not fit the input's "
                f"{tuple(input.shape[1:3])} padded by {padding}"
            )
    if minimum is not None:
        check_flip("minimum", minimum, 32 * input.shape[-1], input.device)
    return torch.ops.bnn_ext.max_pool2d(
        input, kernel_size, stride, padding, dilation, ceil_mode, minimum
    )


@torch.library.register_fake("bnn_ext::max_pool2d")
def _(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    minimum: Tensor | None = None,
) -> Tensor:
    height, width = (
        _pool_size(
            input.shape[1 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode
        )
        for i in (0, 1)
    )
    return input.new_empty((input.shape[0], height, width, input.shape[3]))
