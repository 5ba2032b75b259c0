"""Products of ±1 in training: on packed bits forward, and backward if wanted.

Sums of ±1 are integers, so the packed kernels give the very floats of `torch.nn.functional`, which
are exact below 2^24. Gradients are real: they are torch's if computed by torch's own calls, and
differ in rounding if from packed bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bnn_ext import ops
from bnn_ext._extension import cpu_capability
from bnn_ext._plain import is_plain
from bnn_ext.ops import gradients

CHOICES = ("packed", "float", None)
# What it pays for, measured against torch's float32 products with AVX-512: multiply-accumulates for
# each number that is packed or written, and in all. A map's channels do not lie side by side.
_LEAST_PER_NUMBER = {2: 12, 4: 120}  # by dimensions of the weight
_LEAST = 20_000_000
_LEAST_IMAGES = 8  # tables for the gradients to a convolution's weights are of one place's images
_SLOW_LEVELS = ("generic", "popcnt")

_in_evaluation: ContextVar[bool] = ContextVar("_in_evaluation", default=False)


@contextmanager
def packed_evaluation() -> Iterator[None]:
    """Within it binary layers multiply packed bits in eval mode as they do in training mode.

    The values are the same, bit for bit, in less time. Elsewhere a model in eval mode computes in
    torch's floats, so that what was converted is compared with something else than itself.
    """
    before = _in_evaluation.set(True)
    try:
        yield
    finally:
        _in_evaluation.reset(before)


def wanted(training: bool) -> bool:
    """Whether layers in this mode may multiply packed bits."""
    return training or _in_evaluation.get()


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
    return enough and cpu_capability() not in _SLOW_LEVELS


def backward_pays(input: Tensor, weight: Tensor, *geometry: Sequence[int]) -> bool:
    """Whether they are faster backward; arguments as for `pays`."""
    enough_images = not geometry or input.shape[0] >= _LEAST_IMAGES
    return enough_images and pays(input, weight, *geometry)


def _can_backward(grad: Tensor) -> bool:
    # To differentiate a gradient again takes calls that know how.
    return is_plain(grad) and not torch.is_grad_enabled()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, backward_on_bits: bool) -> Tensor:
        return ops.linear_float(ops.pack(input), ops.pack(weight), weight.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.on_bits = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            product = gradients.linear_input if ctx.on_bits and _can_backward(grad) else Tensor.mm
            of_input = product(rows, weight).view(input.shape)
        if ctx.needs_input_grad[1]:  # a batch is too few numbers for tables to pay
            of_weight = rows.t().mm(input.flatten(0, -2))
        return of_input, of_weight, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        backward_on_bits: bool,
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
        return _in_layout_of(sums, input, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2:6]
        ctx.on_bits = inputs[6]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs_input, needs_weight = needed = ctx.needs_input_grad[:2]
        grads: list[Tensor | None] = [None, None]
        if ctx.on_bits and _can_backward(grad):
            kernel_size = weight.shape[2:]
            reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
            # With a stride there are zeros between the gradients, and tables would add them too.
            dense = all(s == 1 and p <= r for s, p, r in zip(stride, padding, reach, strict=True))
            if needs_input and dense:
                of_input = gradients.conv2d_input(grad, weight, padding, dilation, groups)
                grads[0] = _in_layout_of(of_input, input, weight)
            if needs_weight:
                of_weight = gradients.conv2d_weight(
                    grad, input, kernel_size, stride, padding, dilation, groups
                )
                grads[1] = _in_layout_of(of_weight, input, weight)
        missing = [need and found is None for need, found in zip(needed, grads, strict=True)]
        if any(missing):
            *others, _ = torch.ops.aten.convolution_backward(
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
                (*missing, False),
            )
            grads = [
                found if other is None else other
                for found, other in zip(grads, others, strict=True)
            ]
        return *grads, None, None, None, None, None


def _in_layout_of(sums: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """`sums` in the layout of torch's: layers behind round by the layout."""
    last = any(
        tensor.stride() == torch.empty_like(tensor, memory_format=torch.channels_last).stride()
        for tensor in (input, weight)
    )
    return sums if last else sums.contiguous()


def linear(input: Tensor, weight: Tensor, backward_on_bits: bool) -> Tensor:
    """`torch.nn.functional.linear` of ±1: `[..., in]` and `[out, in]` to `[..., out]`."""
    return _Linear.apply(input, weight, backward_on_bits)


def conv2d(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backward_on_bits: bool,
) -> Tensor:
    """`torch.nn.functional.conv2d` of ±1, zeros around the map."""
    return _Conv2d.apply(input, weight, stride, padding, dilation, groups, backward_on_bits)
