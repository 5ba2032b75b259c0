"""Packing, unpacking, and the layouts of packed tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by_kernel
from bnn_ext.ops.checks import (
    check_device,
    check_dtype,
    check_flip,
    check_integer,
    check_packed,
    check_supported,
    check_tensor,
    check_vector,
)
from bnn_ext.reference import words

TILE_CHANNELS = 16  # output channels that lie side by side in tiled weights

_PACKABLE = (torch.float32, torch.float16, torch.bfloat16, torch.int32)
_UNPACKED = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int8)


@checked_by_kernel
def pack(input: Tensor, threshold: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    """Packs signs, or comparisons with a threshold per channel, along the last dimension.

    Args:
        input: `[..., C]`, float32, float16, bfloat16 or int32, any strides.
        threshold: `[C]`, float32 (int32 for an int32 input); None compares with 0.
        flip: packed `[ceil(C / 32)]`; where its bit is set the comparison is `input <= threshold`
            instead of `input >= threshold`. NaN gives 0 either way. Needs `threshold`.

    Returns:
        int32 `[..., ceil(C / 32)]`.
    """
    check_tensor("input", input, _PACKABLE)
    if input.dim() == 0:
        raise ValueError("input must have at least 1 dimension, found a scalar")
    check_supported("input", input)
    channels = input.shape[-1]
    if threshold is None:
        if flip is not None:
            raise ValueError("flip needs a threshold, found threshold=None")
    else:
        dtype = torch.int32 if input.dtype == torch.int32 else torch.float32
        check_vector("threshold", threshold, channels, dtype, input.device)
    check_flip("flip", flip, channels, input.device)
    return torch.ops.bnn_ext.pack(input, threshold, flip)


@torch.library.register_fake("bnn_ext::pack")
def _(input: Tensor, threshold: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(input.shape[-1])), dtype=torch.int32)


def unpack(packed: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack`: +1 and -1 in `dtype`.

    Args:
        packed: int32 `[..., ceil(channels / 32)]`.
        channels: number of real bits in the last dimension.
        dtype: float32, float16, bfloat16, int32 or int8.

    Returns:
        `[..., channels]` of `dtype`.
    """
    check_integer("channels", channels, 0)
    check_packed("packed", packed, channels)
    check_supported("packed", packed)
    check_dtype("dtype", dtype, _UNPACKED)
    return torch.ops.bnn_ext.unpack(packed, channels, dtype)


@torch.library.register_fake("bnn_ext::unpack")
def _(packed: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], channels), dtype=dtype)


def flatten(packed: Tensor, channels: int) -> Tensor:
    """Joins all dimensions but the first, dropping the tail bits in between.

    Args:
        packed: int32 `[N, ..., ceil(channels / 32)]`.
        channels: number of real bits in the last dimension.

    Returns:
        int32 `[N, ceil(F / 32)]` with `F` the product of the inner sizes and `channels`; the order
        of an NHWC map is height, width, channel.
    """
    check_integer("channels", channels, 0)
    check_packed("packed", packed, channels)
    if packed.dim() < 2:
        raise ValueError(
            f"packed must have at least 2 dimensions, found shape {tuple(packed.shape)}"
        )
    check_supported("packed", packed)
    if channels % 32 == 0:
        return packed.flatten(1)
    return torch.ops.bnn_ext.flatten(packed, channels)


@torch.library.register_fake("bnn_ext::flatten")
def _(packed: Tensor, channels: int) -> Tensor:
    features = channels
    for size in packed.shape[1:-1]:
        features = features * size
    return packed.new_empty((packed.shape[0], words(features)))


def tile_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """What the kernels of the weight's device want to know of packed weights beforehand.

    Derived data: computed once after loading or moving, never saved. Without it kernels that need
    it make it on every call.

    Args:
        weight: packed `[out, words]` or `[out, kh, kw, words]`.
        groups: the convolution's groups; `out` must be divisible by it.

    Returns:
        on the CPU the weights with 16 output channels side by side, int32
        `[groups * ceil(out / groups / 16), kh * kw * words, 16]`, missing channels 0. On CUDA
        popcounts, int32 `[kh, kw, out]`: element `[y, x, n]` is that of weight `n` over the taps
        `[: y + 1, : x + 1]`; `kh = kw = 1` for weights of `linear`.
    """
    check_tensor("weight", weight, (torch.int32,))
    if weight.dim() not in (2, 4):
        raise ValueError(f"weight must have 2 or 4 dimensions, found shape {tuple(weight.shape)}")
    check_integer("groups", groups, 1)
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} output channels, found {groups}"
        )
    check_supported("weight", weight)
    return torch.ops.bnn_ext.tile_weight(weight, groups)


@torch.library.register_fake("bnn_ext::tile_weight")
def _(weight: Tensor, groups: int = 1) -> Tensor:
    return weight.new_empty(tiles_shape(weight, groups, weight.device.type))


def tiles_shape(weight: Tensor, groups: int, device_type: str) -> tuple[int, ...]:
    """The shape of `tile_weight(weight, groups)` on devices of that type."""
    if device_type == "cuda":
        kernel = tuple(weight.shape[1:3]) if weight.dim() == 4 else (1, 1)
        return *kernel, weight.shape[0]
    blocks = groups * (-(-(weight.shape[0] // groups) // TILE_CHANNELS))
    taps_and_words = 1
    for size in weight.shape[1:]:
        taps_and_words *= size
    return blocks, taps_and_words, TILE_CHANNELS


def check_tiles(tiles: Tensor | None, weight: Tensor, groups: int) -> None:
    """`tiles` is None or has the shape of `tile_weight(weight, groups)`."""
    if tiles is None:
        return
    check_tensor("tiles", tiles, (torch.int32,), rank=3)
    # Meta tensors may stand for those of any device.
    types = ("cpu", "cuda") if weight.device.type == "meta" else (weight.device.type,)
    shapes = [tiles_shape(weight, groups, device_type) for device_type in types]
    if tuple(tiles.shape) not in shapes:
        raise ValueError(
            f"tiles must be tile_weight(weight, groups) with shape {shapes[0]}, "
            f"found {tuple(tiles.shape)}"
        )
    check_device("tiles", tiles, weight.device)
