"""Convolutions of packed maps and packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by, checked_by_kernel
from bnn_ext.ops.checks import (
    FLOATS,
    Pair,
    check_device,
    check_dtype,
    check_flip,
    check_integer,
    check_packed,
    check_sums,
    check_supported,
    check_tensor,
    check_vector,
    pair,
)
from bnn_ext.ops.epilogue import Step, check_fused, empty_results, floats_and_bits, numbered
from bnn_ext.ops.packing import check_tiles
from bnn_ext.reference import words

ConvArguments = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _check_conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pad_value: int,
    tiles: Tensor | None,
) -> ConvArguments:
    check_integer("in_channels", in_channels, 0)
    check_integer("groups", groups, 1)
    if in_channels % groups:
        raise ValueError(f"groups must divide the {in_channels} input channels, found {groups}")
    check_packed("input", input, in_channels, rank=4)
    check_supported("input", input)
    check_packed("weight", weight, in_channels // groups, rank=4)
    check_device("weight", weight, input.device)
    geometry = check_geometry(
        tuple(input.shape[1:3]), weight, stride, padding, dilation, groups, pad_value
    )
    check_sums("weight", weight.shape[1] * weight.shape[2] * in_channels // groups)
    check_tiles(tiles, weight, groups)
    return geometry


def check_geometry(
    size: Sequence[int],
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pad_value: int,
) -> ConvArguments:
    """The kernels fit a map of `size`, height and width; `weight` has 4 dimensions."""
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} output channels, found {groups}"
        )
    check_integer("pad_value", pad_value)
    if pad_value not in (-1, 0, 1):
        raise ValueError(f"pad_value must be -1, 0 or 1, found {pad_value}")
    stride = pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    dilation = pair("dilation", dilation, 1)
    for axis in (0, 1):
        kernel = weight.shape[1 + axis]
        if kernel < 1 or _conv_size(size[axis], kernel, 1, padding[axis], dilation[axis]) < 1:
            raise ValueError(
                f"weight has kernel size {tuple(weight.shape[1:3])}, which with dilation "
                f"{dilation} does not fit the input's {tuple(size)} padded by {padding}"
            )
    return stride, padding, dilation


def _conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_shape(
    batch: int,
    size: Sequence[int],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int]:
    """The batch and the output's height and width; the map has `size`, height and width."""
    height, width = (
        _conv_size(size[i], weight.shape[1 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)
    )
    return batch, height, width


@checked_by_kernel
def conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Cross-correlation of ±1 maps and ±1 kernels, as `torch.nn.functional.conv2d` defines it.

    Args:
        input: packed NHWC map, `[N, H, W, ceil(in_channels / 32)]`.
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of real channels.
        stride, padding, dilation: one integer, or two for height and width.
        groups: divides `in_channels` and `out`.
        pad_value: what a padded position holds: 0 adds nothing (as in torch), +1 or -1.
        tiles: `tile_weight(weight, groups)`, if at hand.

    Returns:
        int32 `[N, H', W', out]`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    return torch.ops.bnn_ext.conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )


@torch.library.register_fake("bnn_ext::conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, weight.shape[0]))


@checked_by_kernel
def conv2d_float(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """`conv2d(...) * scale + bias` per output channel.

    The product and the sum are each rounded to float32, then the result once to `dtype`.

    Args:
        input ... pad_value, tiles: as for `conv2d`.
        scale, bias: float32 `[out]` or None.
        dtype: float32, float16 or bfloat16.

    Returns:
        `[N, H', W', out]` of `dtype`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    check_vector("scale", scale, weight.shape[0], torch.float32, input.device)
    check_vector("bias", bias, weight.shape[0], torch.float32, input.device)
    check_dtype("dtype", dtype, FLOATS)
    return torch.ops.bnn_ext.conv2d_float(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        scale,
        bias,
        dtype,
        tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_float")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, weight.shape[0]), dtype=dtype)


@checked_by_kernel
def conv2d_bits(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `conv2d(...) >= threshold` per output channel, `<=` where the flip bit is set.

    Args:
        input ... pad_value, tiles: as for `conv2d`.
        threshold: int32 `[out]`.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed NHWC map `[N, H', W', ceil(out / 32)]`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    check_tensor("threshold", threshold, (torch.int32,))
    check_vector("threshold", threshold, weight.shape[0], torch.int32, input.device)
    check_flip("flip", flip, weight.shape[0], input.device)
    return torch.ops.bnn_ext.conv2d_bits(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        threshold=threshold,
        flip=flip,
        tiles=tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, words(weight.shape[0])))


def _conv2d_fused(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    operations, operands = numbered(steps)
    results = torch.ops.bnn_ext.conv2d_fused.default(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        operations,
        operands,
        dtype,
        threshold,
        flip,
        tiles,
    )
    return floats_and_bits(results, dtype, threshold)


@checked_by(_conv2d_fused)
def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """`conv2d` with the epilogue of `linear_fused`: floats after elementwise steps, bits, or both.

    Args:
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles: as for
            `conv2d`.
        steps, dtype, threshold, flip: as for `linear_fused`; an operand of the output's shape is
            `[N, H', W', out]`.

    Returns:
        `[N, H', W', out]` of `dtype` or None; packed `[N, H', W', ceil(out / 32)]` or None.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    shape = (
        *conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation),
        weight.shape[0],
    )
    check_fused(steps, dtype, threshold, flip, shape, input.device)
    return _conv2d_fused(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        steps,
        dtype,
        threshold,
        flip,
        tiles=tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    shape = conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return empty_results(input, shape, weight.shape[0], dtype, threshold)
