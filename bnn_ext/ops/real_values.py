"""Operators on real values: the epilogue of the fused operators by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by
from bnn_ext.ops.checks import FLOATS, check_no_gradient, check_supported, check_tensor
from bnn_ext.ops.epilogue import (
    Step,
    check_fused,
    empty_results,
    floats_and_bits,
    numbered,
)


def _elementwise(
    input: Tensor,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = None,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    operations, operands = numbered(steps)
    results = torch.ops.bnn_ext.elementwise.default(
        input, operations, operands, dtype, threshold, flip
    )
    return floats_and_bits(results, dtype, threshold)


@checked_by(_elementwise)
def elementwise(
    input: Tensor,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = None,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Elementwise steps on real values, then floats, packed bits, or both from one pass.

    What follows a real layer: batch norm, a residual, PReLU, a clip, the sign of the next layer.

    Args:
        input: `[..., C]`, float32, float16 or bfloat16; others than contiguous ones are copied
            first. A channels-last map is `map.permute(0, 2, 3, 1)`.
        steps, dtype, threshold, flip: as for `linear_fused`, on float32 values; an operand of the
            output's shape has that of the input.

    Returns:
        `[..., C]` of `dtype` or None; packed `[..., ceil(C / 32)]` or None.
    """
    check_tensor("input", input, FLOATS)
    if input.dim() == 0:
        raise ValueError("input must have at least 1 dimension, found a scalar")
    check_supported("input", input)
    check_no_gradient("input", input)
    check_fused(steps, dtype, threshold, flip, tuple(input.shape), input.device)
    return _elementwise(input, steps, dtype, threshold, flip)


@torch.library.register_fake("bnn_ext::elementwise")
def _(
    input: Tensor,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
) -> list[Tensor]:
    return empty_results(input, input.shape[:-1], input.shape[-1], dtype, threshold)
