"""Products and convolutions of real inputs and binary weights.

One operator for all real inputs, whose dtype decides: floats give floats of their dtype, uint8
images give exact int32 sums; thresholds are float32 or int32 like the sums, as in `pack`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by_kernel
from bnn_ext.ops.checks import (
    FLOATS,
    Pair,
    check_device,
    check_flip,
    check_integer,
    check_no_gradient,
    check_packed,
    check_supported,
    check_tensor,
    check_vector,
)
from bnn_ext.ops.convolution import ConvArguments, check_geometry, conv2d_shape
from bnn_ext.ops.packing import check_tiles
from bnn_ext.reference import words

_REAL = (*FLOATS, torch.uint8)


def _check_real(name: str, input: Tensor, rank: int | None = None) -> None:
    check_tensor(name, input, _REAL, rank)
    if input.dim() == 0:
        raise ValueError(f"{name} must have at least 1 dimension, found a scalar")
    check_supported(name, input)


def _check_real_sums(name: str, input: Tensor, k: int) -> None:
    """Sums of `k` signed values fit into int32 if they are integers."""
    if input.dtype == torch.uint8 and k * 255 >= 2**31:
        raise ValueError(
            f"{name} must give sums below 2**31, found sums of {k} uint8 values with signs"
        )


def _check_affine(input: Tensor, scale: Tensor | None, bias: Tensor | None, channels: int) -> None:
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and input.dtype == torch.uint8:
            raise ValueError(f"{name} must be None for uint8 input, whose sums stay int32")
        check_vector(name, tensor, channels, torch.float32, input.device)
    check_no_gradient("input", input)


def _check_thresholds(input: Tensor, threshold: Tensor, flip: Tensor | None, channels: int) -> None:
    dtype = _sum_dtype(input)
    check_tensor("threshold", threshold, (dtype,))
    check_vector("threshold", threshold, channels, dtype, input.device)
    check_flip("flip", flip, channels, input.device)


def _sum_dtype(input: Tensor) -> torch.dtype:
    return torch.int32 if input.dtype == torch.uint8 else torch.float32


def _value_dtype(input: Tensor) -> torch.dtype:
    return torch.int32 if input.dtype == torch.uint8 else input.dtype


def _check_binary_weight_linear(
    input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None
) -> None:
    check_integer("in_features", in_features, 0)
    _check_real("input", input)
    if input.shape[-1] != in_features:
        raise ValueError(
            f"input must have {in_features} features in its last dimension, found shape "
            f"{tuple(input.shape)}"
        )
    check_packed("weight", weight, in_features, rank=2)
    check_device("weight", weight, input.device)
    _check_real_sums("in_features", input, in_features)
    check_tiles(tiles, weight, groups=1)


@checked_by_kernel
def binary_weight_linear(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Real inputs times ±1 weights: `input @ signs.T * scale + bias`.

    Sums of floats are float32, in an order that is the same at every CPU level and in every batch,
    but neither torch's nor that on CUDA: at most `(in_features / 4 + 3) * 2**-24 * sum(abs(input))`
    off. The product with the scale and the sum with the bias are rounded to float32, then the
    result once to the dtype of the input. NaN and infinity do what they do in torch.

    Args:
        input: `[..., in_features]`, float32, float16, bfloat16 or uint8.
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        scale, bias: float32 `[out]` or None; None for uint8.
        tiles: `tile_weight(weight)`, if at hand.

    Returns:
        `[..., out]` in the dtype of the input; for uint8 the int32 sums, exactly.

    Source: "BinaryConnect", 2015 (arXiv:1511.00363), section 2.6: binary weights at test time.
    """
    _check_binary_weight_linear(input, weight, in_features, tiles)
    _check_affine(input, scale, bias, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_linear(input, weight, in_features, scale, bias, tiles)


@torch.library.register_fake("bnn_ext::binary_weight_linear")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=_value_dtype(input))


@checked_by_kernel
def binary_weight_linear_bits(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `input @ signs.T >= threshold` per output channel, `<=` where the flip bit is set.

    The sums are those of `binary_weight_linear` before scale, bias and rounding to the dtype of the
    input. NaN gives 0 either way.

    Args:
        input, weight, in_features, tiles: as for `binary_weight_linear`.
        threshold: float32 `[out]`, int32 for uint8 input.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed `[..., ceil(out / 32)]`.
    """
    _check_binary_weight_linear(input, weight, in_features, tiles)
    _check_thresholds(input, threshold, flip, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_linear_bits(
        input, weight, in_features, threshold, flip, tiles
    )


@torch.library.register_fake("bnn_ext::binary_weight_linear_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(weight.shape[0])), dtype=torch.int32)


def _check_binary_weight_conv2d(
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
    _check_real("input", input, rank=4)
    if input.shape[1] != in_channels:
        raise ValueError(
            f"input must have {in_channels} channels, found shape {tuple(input.shape)}"
        )
    check_packed("weight", weight, in_channels // groups, rank=4)
    check_device("weight", weight, input.device)
    geometry = check_geometry(
        tuple(input.shape[2:]), weight, stride, padding, dilation, groups, pad_value
    )
    _check_real_sums("weight", input, weight.shape[1] * weight.shape[2] * in_channels // groups)
    check_tiles(tiles, weight, groups)
    return geometry


@checked_by_kernel
def binary_weight_conv2d(
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
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Cross-correlation of real maps and ±1 kernels, `* scale + bias` per output channel.

    Sums round as those of `binary_weight_linear`: off by at most `(kh * kw *
    ceil(in_channels / groups / 4) + 3) * 2**-24 * sum(abs(x))` over the inputs of a window.

    Args:
        input: `[N, in_channels, H, W]` of any strides, float32, float16, bfloat16 or uint8.
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of input channels.
        stride, padding, dilation: one integer, or two for height and width.
        groups: divides `in_channels` and `out`.
        pad_value: what a padded position holds: 0 adds nothing (as in torch), +1 or -1.
        scale, bias: float32 `[out]` or None; None for uint8.
        tiles: `tile_weight(weight, groups)`, if at hand.

    Returns:
        `[N, out, H', W']` in torch's channels_last memory format whatever that of the input, in the
        dtype of the input; for uint8 the int32 sums, exactly.
    """
    stride, padding, dilation = _check_binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_affine(input, scale, bias, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, scale, bias, tiles
    )


@torch.library.register_fake("bnn_ext::binary_weight_conv2d")
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
    tiles: Tensor | None = None,
) -> Tensor:
    shape = conv2d_shape(input.shape[0], input.shape[2:], weight, stride, padding, dilation)
    nhwc = input.new_empty((*shape, weight.shape[0]), dtype=_value_dtype(input))
    return nhwc.permute(0, 3, 1, 2)


@checked_by_kernel
def binary_weight_conv2d_bits(
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
    """Packs the sums of `binary_weight_conv2d` `>= threshold`, `<=` where the flip bit is set.

    Args:
        input ... pad_value, tiles: as for `binary_weight_conv2d`.
        threshold: float32 `[out]`, int32 for uint8 input.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed NHWC map `[N, H', W', ceil(out / 32)]`.
    """
    stride, padding, dilation = _check_binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_thresholds(input, threshold, flip, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_conv2d_bits(
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


@torch.library.register_fake("bnn_ext::binary_weight_conv2d_bits")
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
    shape = conv2d_shape(input.shape[0], input.shape[2:], weight, stride, padding, dilation)
    return input.new_empty((*shape, words(weight.shape[0])), dtype=torch.int32)
