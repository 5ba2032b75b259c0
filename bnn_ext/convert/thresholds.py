"""BatchNorm, activation and sign as one comparison per channel, exactly.

The chain of modules between a layer and the next sign is a monotone function of one number per
channel. In floating point too: rounding never reverses an order. So its sign changes at most once,
and bisection over the ordered numbers that can occur, evaluating the real chain at each, finds
where. The comparison with that number gives the same bit as the chain, for every number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], Tensor]


class NotMonotoneError(ValueError):
    """A chain that is not monotone, since NaN can occur in it."""


class Threshold(NamedTuple):
    """`value >= threshold` in a rising channel (bool), `value <= threshold` in another."""

    threshold: Tensor
    rising: Tensor


def _switch(
    bit: Callable[[Tensor], Tensor], low: int, high: int, channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bisects a bit per channel that changes at most once on the integers low..high.

    Returns:
        The bit at `low`, the bit at `high`, and the last integer where it is as at `low`.
    """
    lows = _same(low, channels)
    highs = _same(high, channels)
    first, last = bit(lows), bit(highs)
    while bool((highs - lows > 1).any()):
        middle = lows + (highs - lows) // 2
        as_first = bit(middle) == first
        lows = torch.where(as_first, middle, lows)
        highs = torch.where(as_first, highs, middle)
    return first, last, lows


def _same(integer: int, channels: int) -> Tensor:
    return torch.full((channels,), integer, device="cpu")


@torch.no_grad()
def _comparison(evaluate: Evaluate, largest: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The integer to compare with, whether downwards, and the constant bit where there is one.

    Args:
        evaluate: the chain, from int64 `[channels]` in -largest..largest to real `[channels]`.

    Returns:
        `(integer, flip, constant)`: `[channels]` each; constant is -1 where the bit varies.
    """
    # The sign of NaN is -1, whatever that of its neighbours. Numbers that overflow in the chain
    # give NaN (inf - inf, 0 * inf) from somewhere outwards: none at the ends, none between them.
    for end in (-largest, largest):
        undefined = evaluate(_same(end, channels)).isnan()
        if undefined.any():
            channel = int(undefined.nonzero()[0])
            raise NotMonotoneError(f"but NaN can occur in channel {channel}")

    first, last, switch = _switch(
        lambda integers: (evaluate(integers) >= 0).cpu(), -largest, largest, channels
    )
    integer = torch.where(first, switch, switch + 1)
    constant = torch.where(first == last, first.long(), -1)
    return integer, first & ~last, constant


def integer_threshold(evaluate: Evaluate, largest: int, channels: int) -> Threshold:
    """The threshold of a chain that starts at integer sums.

    Args:
        evaluate: the chain, from int32 `[channels]` to real `[channels]`.
        largest: the sums lie in -largest..largest.
        channels: number of channels.

    Raises:
        NotMonotoneError: NaN can occur.
    """
    integer, flip, constant = _comparison(
        lambda sums: evaluate(sums.to(torch.int32)), largest, channels
    )
    limits = torch.iinfo(torch.int32)
    threshold = torch.where(
        constant == 1, limits.min, torch.where(constant == 0, limits.max, integer)
    )
    return Threshold(threshold.to(torch.int32), ~flip)


def float_threshold(evaluate: Evaluate, channels: int) -> Threshold:
    """The threshold of a chain that starts at float32 values up to 2^100 in magnitude.

    Values beyond are left out, since they could overflow in the chain.

    Args:
        evaluate: the chain, from float32 `[channels]` to real `[channels]`.
        channels: number of channels.

    Raises:
        NotMonotoneError: NaN can occur.
    """

    # The bits of a positive float, read as an integer, are in the order of the floats.
    def value(order: Tensor) -> Tensor:
        magnitude = order.abs().to(torch.int32).view(torch.float32)
        return torch.where(order < 0, -magnitude, magnitude)

    largest = (100 + 127) << 23  # 2^100: the exponent, and no mantissa
    order, flip, constant = _comparison(lambda order: evaluate(value(order)), largest, channels)
    infinity = torch.inf
    threshold = torch.where(
        constant == 1, -infinity, torch.where(constant == 0, infinity, value(order))
    )
    return Threshold(threshold, ~flip)
