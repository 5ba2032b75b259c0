"""What the fused operators share: the steps between their sums and their results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext import reference
from bnn_ext.ops.checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_flip,
    check_no_gradient,
    check_tensor,
    check_vector,
)
from bnn_ext.reference import words

# A step of an epilogue: its name, and its operand for each output channel or for each output.
Step = tuple[str, Tensor]
STEPS = ("multiply", "add", "prelu", "maximum", "minimum")  # numbered as in epilogue_kernels.h


def check_fused(
    steps: Sequence[Step],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Checks what finishes outputs of `shape`."""
    channels = shape[-1]
    for name, operand in steps:
        if name not in STEPS:
            raise ValueError(f"steps must be named {', '.join(STEPS)}, found {name!r}")
        what = f"the operand of {name!r} in steps"
        if isinstance(operand, Tensor) and operand.dim() == 1:
            check_vector(what, operand, channels, torch.float32, device)
            continue
        check_tensor(what, operand, FLOATS)
        if tuple(operand.shape) != shape:
            raise ValueError(
                f"{what} must have {channels} elements or the output's shape {shape}, "
                f"found shape {tuple(operand.shape)}"
            )
        check_no_gradient(what, operand)
        check_device(what, operand, device)
    if dtype is None and threshold is None:
        raise ValueError("dtype or threshold must be given, found None for both")
    if dtype is not None:
        check_dtype("dtype", dtype, FLOATS)
    if threshold is not None:
        check_vector("threshold", threshold, channels, torch.float32, device)
    elif flip is not None:
        raise ValueError("flip needs a threshold, found threshold=None")
    check_flip("flip", flip, channels, device)


def floats_and_bits(
    results: list[Tensor], dtype: torch.dtype | None, threshold: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What an operator returned in a list, which has no places for what was not asked for."""
    floats = None if dtype is None else results[0]
    return floats, None if threshold is None else results[-1]


def empty_results(
    input: Tensor,
    shape: Sequence[int],
    channels: int,
    dtype: torch.dtype | None,
    threshold: Tensor | None,
) -> list[Tensor]:
    """The results of a fake kernel for outputs `[*shape, channels]`."""
    results = []
    if dtype is not None:
        results.append(input.new_empty((*shape, channels), dtype=dtype))
    if threshold is not None:
        results.append(input.new_empty((*shape, words(channels))))
    return results


def finish(
    sums: Tensor,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
) -> list[Tensor]:
    """The epilogue in torch's own operators, for devices without a kernel for it."""
    steps = [(STEPS[number], operand) for number, operand in zip(operations, operands, strict=True)]
    y, _ = reference.finish(sums, steps, dtype or torch.float32, None, None)
    assert y is not None
    results = [] if dtype is None else [y]
    if threshold is not None:
        results.append(torch.ops.bnn_ext.pack(y, threshold, flip))
    return results
