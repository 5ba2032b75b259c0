"""Matrix products of packed rows and packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by, checked_by_kernel
from bnn_ext.ops.checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_flip,
    check_integer,
    check_packed,
    check_sums,
    check_supported,
    check_tensor,
    check_vector,
)
from bnn_ext.ops.epilogue import Step, check_fused, empty_results, floats_and_bits, numbered
from bnn_ext.ops.packing import check_tiles
from bnn_ext.reference import words


def _check_linear(input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None) -> None:
    check_integer("in_features", in_features, 0)
    check_sums("in_features", in_features)
    check_packed("input", input, in_features)
    check_supported("input", input)
    check_packed("weight", weight, in_features, rank=2)
    check_device("weight", weight, input.device)
    check_tiles(tiles, weight, groups=1)


@checked_by_kernel
def linear(
    input: Tensor, weight: Tensor, in_features: int, *, tiles: Tensor | None = None
) -> Tensor:
    """Sums of products of ±1: `in_features - 2 popcount(input xor weight)`.

    Args:
        input: packed `[..., ceil(in_features / 32)]`.
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        tiles: `tile_weight(weight)`, if at hand.

    Returns:
        int32 `[..., out]`.
    """
    _check_linear(input, weight, in_features, tiles)
    return torch.ops.bnn_ext.linear(input, weight, in_features, tiles)


@torch.library.register_fake("bnn_ext::linear")
def _(input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@checked_by_kernel
def linear_float(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """`linear(...) * scale + bias` per output channel.

    The product and the sum are each rounded to float32, then the result once to `dtype`.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        scale, bias: float32 `[out]` or None.
        dtype: float32, float16 or bfloat16.

    Returns:
        `[..., out]` of `dtype`.
    """
    _check_linear(input, weight, in_features, tiles)
    check_vector("scale", scale, weight.shape[0], torch.float32, input.device)
    check_vector("bias", bias, weight.shape[0], torch.float32, input.device)
    check_dtype("dtype", dtype, FLOATS)
    return torch.ops.bnn_ext.linear_float(input, weight, in_features, scale, bias, dtype, tiles)


@torch.library.register_fake("bnn_ext::linear_float")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=dtype)


@checked_by_kernel
def linear_bits(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `linear(...) >= threshold` per output channel, `<=` where the flip bit is set.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        threshold: int32 `[out]`.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed `[..., ceil(out / 32)]`.
    """
    _check_linear(input, weight, in_features, tiles)
    check_tensor("threshold", threshold, (torch.int32,))
    check_vector("threshold", threshold, weight.shape[0], torch.int32, input.device)
    check_flip("flip", flip, weight.shape[0], input.device)
    return torch.ops.bnn_ext.linear_bits(input, weight, in_features, threshold, flip, tiles)


@torch.library.register_fake("bnn_ext::linear_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(weight.shape[0])))


def _linear_fused(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    operations, operands = numbered(steps)
    results = torch.ops.bnn_ext.linear_fused.default(
        input, weight, in_features, operations, operands, dtype, threshold, flip, tiles
    )
    return floats_and_bits(results, dtype, threshold)


@checked_by(_linear_fused)
def linear_fused(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums as floats after elementwise steps, as packed bits, or both from one pass.

    The sums become float32; each step is one operation on them, rounded once:

    - `("multiply", operand)`, `("divide", operand)`, `("add", operand)`: scales, biases, residual
      connections;
    - `("prelu", slope)`: `y if y > 0 else y * slope`;
    - `("maximum", low)`, `("minimum", high)`: the bounds of a clip; NaN stays;
    - `("multiply_add", factor, addend)`: product and sum rounded once together, as torch's
      BatchNorm in evaluation does on a CPU with fused multiply-add;
    - `("float16",)`, `("bfloat16",)`: rounded to half precision, as each call of a network of that
      dtype does.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        steps: in this order. An operand is float32 `[out]` or, but for "multiply_add", has the
            output's shape and is float32, float16 or bfloat16.
        dtype: of the floats: float32, float16 or bfloat16; None gives none.
        threshold: float32 `[out]` for the bits `y >= threshold`, of y as rounded to `dtype`; None
            gives none.
        flip: packed `[ceil(out / 32)]`; where its bit is set, a bit is `y <= threshold`.

    Returns:
        `[..., out]` of `dtype` or None; packed `[..., ceil(out / 32)]` or None.
    """
    _check_linear(input, weight, in_features, tiles)
    shape = (*input.shape[:-1], weight.shape[0])
    check_fused(steps, dtype, threshold, flip, shape, input.device)
    return _linear_fused(input, weight, in_features, steps, dtype, threshold, flip, tiles=tiles)


@torch.library.register_fake("bnn_ext::linear_fused")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    shape = input.shape[:-1]
    return empty_results(input, shape, weight.shape[0], dtype, threshold)
