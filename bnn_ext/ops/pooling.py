"""Pooling of packed and of real maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by_kernel
from bnn_ext.ops.checks import (
    Pair,
    check_flip,
    check_integer,
    check_no_gradient,
    check_supported,
    check_tensor,
    pair,
)


def _pool_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # torch's rule: the last window starts inside the input or its left padding.
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def _pool_shape(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, ...]:
    window = zip(input.shape[1:3], kernel_size, stride, padding, dilation, strict=True)
    height, width = (_pool_size(*axis, ceil_mode) for axis in window)
    return (input.shape[0], height, width, input.shape[3])


def _check_window(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[tuple[int, int], ...]:
    """The pairs, if the window fits the map."""
    check_supported("input", input)
    kernel_size = pair("kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    dilation = pair("dilation", dilation, 1)
    if any(2 * p > k for p, k in zip(padding, kernel_size, strict=True)):
        raise ValueError(
            f"padding must be at most half of kernel_size {kernel_size}, found {padding}"
        )
    size = _pool_shape(input, kernel_size, stride, padding, dilation, ceil_mode)[1:3]
    if min(input.shape[1:3]) < 1 or min(size) < 1:
        raise ValueError(
            f"kernel_size {kernel_size} with dilation {dilation} does not fit the input's "
            f"{tuple(input.shape[1:3])} padded by {padding}"
        )
    return kernel_size, stride, padding, dilation


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
    window = _check_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    if minimum is not None:
        check_flip("minimum", minimum, 32 * input.shape[-1], input.device)
    return torch.ops.bnn_ext.max_pool2d(input, *window, ceil_mode, minimum)


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
    return input.new_empty(_pool_shape(input, kernel_size, stride, padding, dilation, ceil_mode))


def _check_real_map(input: Tensor) -> None:
    check_tensor("input", input, (torch.float32,), rank=4)
    check_no_gradient("input", input)


@checked_by_kernel
def max_pool2d_float(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Max-pool of a real map, bit for bit that of torch on the CPU in either of its memory formats.

    As there NaN is greater than all numbers and the last of several remains, the first of equal
    zeros does, and the maximum of nothing is -infinity.

    Args:
        input: float32 NHWC map `[N, H, W, C]`; other strides than those of a contiguous one cost
            a copy.
        kernel_size, stride, padding, dilation, ceil_mode: as for `torch.nn.functional.max_pool2d`.

    Returns:
        float32 NHWC map `[N, H', W', C]`.
    """
    _check_real_map(input)
    window = _check_window(input, kernel_size, stride, padding, dilation, ceil_mode)
    return torch.ops.bnn_ext.max_pool2d_float(input, *window, ceil_mode)


@torch.library.register_fake("bnn_ext::max_pool2d_float")
def _(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    return input.new_empty(_pool_shape(input, kernel_size, stride, padding, dilation, ceil_mode))


@checked_by_kernel
def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average-pool of a real map, bit for bit that of torch on the CPU in torch.channels_last.

    A float32 sum row after row, and one division. Of contiguous maps torch computes the same, but
    gives +0.0 for a quotient of -0.0. A window of padding alone gives 0.

    Args:
        input: float32 NHWC map `[N, H, W, C]`; other strides than those of a contiguous one cost
            a copy.
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as for
            `torch.nn.functional.avg_pool2d`, but the divisor must be positive.

    Returns:
        float32 NHWC map `[N, H', W', C]`.
    """
    _check_real_map(input)
    window = _check_window(input, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None:
        check_integer("divisor_override", divisor_override, 1)
    return torch.ops.bnn_ext.avg_pool2d(
        input, *window[:3], ceil_mode, count_include_pad, divisor_override
    )


@torch.library.register_fake("bnn_ext::avg_pool2d")
def _(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    return input.new_empty(_pool_shape(input, kernel_size, stride, padding, (1, 1), ceil_mode))


@checked_by_kernel
def global_avg_pool2d(input: Tensor) -> Tensor:
    """The mean of each channel of a real map: `avg_pool2d` with a window as large as the map.

    Args:
        input: float32 NHWC map `[N, H, W, C]` of at least one pixel; other strides than those of a
            contiguous one cost a copy.

    Returns:
        float32 NHWC map `[N, 1, 1, C]`.
    """
    _check_real_map(input)
    check_supported("input", input)
    if min(input.shape[1:3]) < 1:
        raise ValueError(f"input must have at least one pixel, found shape {tuple(input.shape)}")
    return torch.ops.bnn_ext.global_avg_pool2d(input)


@torch.library.register_fake("bnn_ext::global_avg_pool2d")
def _(input: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], 1, 1, input.shape[3])
