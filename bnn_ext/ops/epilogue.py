"""The epilogue of the fused operators: the steps between their values and their results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_flip,
    check_no_gradient,
    check_tensor,
    check_vector,
)
from bnn_ext.reference import Step, words

# How many operands each has; numbered in this order, as in steps.h.
_OPERAND_COUNTS = {
    "multiply": 1,
    "add": 1,
    "prelu": 1,
    "maximum": 1,
    "minimum": 1,
    "multiply_add": 2,
    "divide": 1,
    "float16": 0,
    "bfloat16": 0,
}
STEPS = tuple(_OPERAND_COUNTS)


def operand_count(name: str) -> int:
    """How many operands the step of that name has.

    Raises:
        ValueError: there is no such step.
    """
    if name not in _OPERAND_COUNTS:
        raise ValueError(f"steps must be named {', '.join(STEPS)}, found {name!r}")
    return _OPERAND_COUNTS[name]


def numbered(steps: Sequence[Step]) -> tuple[list[int], list[Tensor]]:
    """The steps as operators take them: numbers, and the operands of all in a row."""
    for name, *operands in steps:
        if len(operands) != operand_count(name):
            raise ValueError(
                f"{name!r} in steps must have {operand_count(name)} operands, found {len(operands)}"
            )
    return [STEPS.index(step[0]) for step in steps], [x for step in steps for x in step[1:]]


def named(operations: Sequence[int], operands: Sequence[Tensor]) -> list[Step]:
    """The inverse of `numbered`."""
    left = iter(operands)
    names = (STEPS[number] for number in operations)
    return [(name, *(next(left) for _ in range(operand_count(name)))) for name in names]  # type: ignore[misc]


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
    numbered(steps)  # checks names and numbers of operands
    for name, *operands in steps:
        if name == "multiply_add":
            for role, operand in zip(("factor", "addend"), operands, strict=True):
                what = f"the {role} of {name!r} in steps"
                check_tensor(what, operand, (torch.float32,))
                check_vector(what, operand, channels, torch.float32, device)
            continue
        for operand in operands:
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
        results.append(input.new_empty((*shape, words(channels)), dtype=torch.int32))
    return results
