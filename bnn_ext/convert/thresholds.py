"""BatchNorm, activation and sign as one comparison per channel, exactly.

The chain of modules between a layer and the next sign is a monotone function of one number per
channel. In floating point too: rounding never reverses an order. So its sign changes at most once,
and bisection over the ordered numbers that can occur, evaluating the real chain at each, finds
where. The comparison with that number gives the same bit as the chain, for every number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnn_ext.reference import pack_bits

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INCREASING = (nn.Hardtanh, nn.ReLU, nn.ReLU6)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

Evaluate = Callable[[Tensor], Tensor]


class NotMonotoneError(ValueError):
    """A chain that is not monotone, since NaN can occur in it."""


class Threshold(NamedTuple):
    """`value >= threshold`, or `value <= threshold` where the packed flip bit is set.

    Without a threshold it is the sign: `value >= 0`.
    """

    threshold: Tensor | None
    flip: Tensor | None


def direction(module: nn.Module, channels: int) -> Tensor | str:
    """+1 or -1 for each channel in which the module never decreases or never increases.

    Returns:
        `[channels]`, or a sentence that says why the module is not such a function.
    """
    up = torch.ones(channels, device="cpu")
    if isinstance(module, IDENTITIES + _INCREASING):
        return up
    if isinstance(module, nn.LeakyReLU):
        return up if module.negative_slope >= 0 else "LeakyReLU has a negative slope"
    if isinstance(module, nn.PReLU):
        slopes = module.weight.detach()
        if (slopes >= 0).all():
            return up
        worst = int((~(slopes >= 0)).nonzero()[0])
        return f"PReLU has a negative slope ({slopes[worst]:.4g} in channel {worst})"
    if isinstance(module, _BATCH_NORMS):
        if module.num_features != channels:
            return (
                f"{type(module).__name__} normalizes {module.num_features} features, "
                f"not the {channels} channels"
            )
        if module.running_mean is None:
            return f"{type(module).__name__} keeps no running statistics, so each batch differs"
        if module.weight is None:
            return up
        return torch.where(module.weight.detach().cpu() < 0, -1.0, 1.0)
    return f"{type(module).__name__} is not known to be monotone in each channel"


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


def _threshold(threshold: Tensor, flip: Tensor) -> Threshold:
    return Threshold(threshold, pack_bits(flip) if bool(flip.any()) else None)


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
    return _threshold(threshold.to(torch.int32), flip)


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
    return _threshold(threshold, flip)


def minimum_channels(after_pool: Sequence[nn.Module], channels: int) -> Tensor | None:
    """Where a max-pool must take the minimum of the bits instead: where what follows decreases.

    sign(f(max(x))) is the maximum of sign(f(x)) for an increasing f and the minimum for a
    decreasing one.

    Returns:
        Packed `[ceil(channels / 32)]`, or None if there is no such channel.
    """
    slope = torch.ones(channels, device="cpu")
    for module in after_pool:
        step = direction(module, channels)
        assert isinstance(step, Tensor)  # checked when the module joined the chain
        slope = slope * step
    return pack_bits(slope < 0) if bool((slope < 0).any()) else None
