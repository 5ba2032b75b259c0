"""The sign in training, drawn signs, and the gradients that stand in for the sign's.

Each is a kernel of one pass over memory for float32 on the CPU, and calls of torch elsewhere, which
give the same values, but for those drawn. None has a gradient itself: quantizers define theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_ext import _extension as _extension  # has the operators
from bnn_ext._plain import is_plain


def sign(x: Tensor) -> Tensor:
    """`bnn_ext.reference.sign`: +1 where `x >= 0`, else -1, in the dtype of `x`."""
    if _has_kernel(x):
        return torch.ops.bnn_ext.sign(x)
    return _plus_minus(x >= 0, x.dtype)


def stochastic_sign(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """+1 where `x > u`, else -1, for numbers `u` drawn uniformly from [-1, 1)."""
    if x.is_cpu and x.dtype == torch.float32 and _keeps_strides(x):  # compiled as well
        seed = torch.randint(2**63 - 1, (), generator=generator)
        return torch.ops.bnn_ext.stochastic_sign(x, seed)
    # In float32 whatever the dtype of x, so that half precision does not coarsen the probability.
    uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return _plus_minus(x > 2 * uniform - 1, x.dtype)


def straight_through(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` where `abs(x) <= 1`, else 0, also where x is NaN."""
    if _has_kernel(grad, x):
        return torch.ops.bnn_ext.straight_through(grad, x)
    above = 1 + torch.finfo(x.dtype).eps  # the number after 1: the bounds let 1 itself through
    return _between(-above, above, grad, x)


def piecewise_quadratic(grad: Tensor, x: Tensor) -> Tensor:
    """`grad * (2 - 2 abs(x))` where `abs(x) < 1`, else 0, also where x is NaN."""
    if _has_kernel(grad, x):
        return torch.ops.bnn_ext.piecewise_quadratic(grad, x)
    return _between(-1, 1, grad * (2 - 2 * x.abs()), x)


def _has_kernel(*tensors: Tensor) -> bool:
    first = tensors[0]
    return (
        not torch.is_grad_enabled()  # to differentiate a backward again takes calls that know how
        and is_plain(*tensors)
        and all(_keeps_strides(t) and t.stride() == first.stride() for t in tensors)
    )


def _keeps_strides(x: Tensor) -> bool:
    """Whether torch's calls give results with the strides of `x`, as the kernels do.

    Layers behind them choose their algorithms by strides, and a converted network is compared with
    the model bit for bit. Where a size is 1 or values lie apart, torch has rules of its own.
    """
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and 1 not in x.shape


def _plus_minus(positive: Tensor, dtype: torch.dtype) -> Tensor:
    # Twice as fast on a CPU as torch.where or more: that branches at every value, and signs are as
    # good as random.
    return positive.to(dtype).mul_(2).sub_(1)


def _between(low: float, high: float, grad: Tensor, x: Tensor) -> Tensor:
    """`grad` where `low < x < high`, else 0, also where x is NaN or `grad` not finite."""
    # Three times as fast on a CPU as torch.where, see `_plus_minus`; but it may let NaN through.
    x = torch.nan_to_num(x, nan=torch.inf)
    return torch.ops.aten.hardtanh_backward(grad, x, low, high)


@torch.library.register_fake("bnn_ext::sign")
def _(input: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("bnn_ext::stochastic_sign")
def _(input: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("bnn_ext::straight_through")
@torch.library.register_fake("bnn_ext::piecewise_quadratic")
def _(grad: Tensor, input: Tensor) -> Tensor:
    return torch.empty_like(input)
