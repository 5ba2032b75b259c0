"""Products of ±1 in training: on packed bits forward, in floats backward.

Sums of ±1 are integers, so the packed kernels give the very floats of `torch.nn.functional`, which
are exact below 2^24. The gradients are computed by the calls that torch's own are computed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnn_ext import ops
from bnn_ext._extension import cpu_capability
from bnn_ext._plain import is_plain

FORWARDS = ("packed", "float", None)
# What it pays for, measured against torch's float32 products with AVX-512: multiply-accumulates for
# each number that is packed or written, and in all. A map's channels do not lie side by side.
_LEAST_PER_NUMBER = {2: 12, 4: 120}  # by dimensions of the weight
_LEAST = 20_000_000
_LEVELS = ("avx2", "avx512", "avx512_vpopcnt")


def possible(input: Tensor, weight: Tensor) -> bool:
    """Whether the packed kernels can stand in for torch's."""
    return (
        is_plain(input, weight)
        and not torch.is_autocast_enabled("cpu")
        and input.dim() >= 2
        and input.numel() > 0
    )


def pays(input: Tensor, weight: Tensor, *geometry: Sequence[int]) -> bool:
    """Whether they are faster, packing included.

    Args:
        input: `[..., in]`, or `[N, C, H, W]` of a convolution.
        weight: `[out, in]`, or `[out, C / groups, kh, kw]`.
        geometry: stride, padding and dilation of a convolution.
    """
    places = input.numel() // input.shape[-1]
    if geometry:
        places = input.shape[0]
        for i, (stride, padding, dilation) in enumerate(zip(*geometry, strict=True)):
            reach = dilation * (weight.shape[2 + i] - 1) + 1
            places *= (input.shape[2 + i] + 2 * padding - reach) // stride + 1
    products = places * weight.numel()
    numbers = input.numel() + weight.numel() + places * weight.shape[0]
    enough = products >= _LEAST and products >= _LEAST_PER_NUMBER[weight.dim()] * numbers
    return enough and cpu_capability() in _LEVELS


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_float(ops.pack(input), ops.pack(weight), weight.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = rows.mm(weight).view(input.shape)
        if ctx.needs_input_grad[1]:
            of_weight = rows.t().mm(input.flatten(0, -2))
        return of_input, of_weight


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        sums = ops.conv2d_float(
            ops.pack(input.permute(0, 2, 3, 1)),
            ops.pack(weight.permute(0, 2, 3, 1)),
            input.shape[1],
            stride,
            padding,
            dilation,
            groups,
        ).permute(0, 3, 1, 2)
        # The layout that torch would give its result: layers behind it round by the layout.
        last = any(
            tensor.stride() == torch.empty_like(tensor, memory_format=torch.channels_last).stride()
            for tensor in (input, weight)
        )
        return sums if last else sums.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            input,
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (*ctx.needs_input_grad[:2], False),
        )
        return of_input, of_weight, None, None, None, None


def linear(input: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.linear` of ±1: `[..., in]` and `[out, in]` to `[..., out]`."""
    return _Linear.apply(input, weight)


def conv2d(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`torch.nn.functional.conv2d` of ±1, zeros around the map."""
    return _Conv2d.apply(input, weight, stride, padding, dilation, groups)
