"""Gradients from packed bits: the exact sums, but for rounding, which is the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bnn_ext import _C, ops
from bnn_ext.ops import gradients

# images, channels in and out, map, kernel, stride, padding, dilation, groups
CONVOLUTIONS = [
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (3, 5, 7, (6, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (33, 17, 13, (5, 7), (3, 2), (1, 1), (2, 0), (1, 1), 1),
    (64, 70, 12, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (30, 16, 24, (7, 6), (2, 3), (2, 3), (1, 2), (1, 1), 1),
    (5, 12, 8, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2), 4),
    (6, 4, 64, (3, 3), (3, 3), (2, 1), (3, 4), (1, 1), 2),  # taps that never meet the map
    (8, 130, 3, (2, 40), (1, 5), (1, 1), (0, 2), (1, 1), 1),
    (517, 6, 5, (2, 3), (2, 2), (1, 1), (0, 1), (1, 1), 1),  # more images than tables at a time
]


class Problem:
    """A convolution of ±1, and a gradient behind it."""

    def __init__(self, case: tuple[Any, ...], grads: str = "normal") -> None:
        (
            images,
            channels,
            out,
            size,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            groups,
        ) = case
        self.groups = groups
        self.input = signs(images, channels, *size)
        self.weight = signs(out, channels // groups, *self.kernel)
        shape = self.torch(torch.nn.functional.conv2d, self.input, self.weight).shape
        self.grad = (
            torch.randn(shape) if grads == "normal" else torch.randint(-99, 100, shape).float()
        )

    def torch(self, function: Any, input: Tensor, weight: Tensor) -> Tensor:
        return function(input, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def exact(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """torch's gradients in float64."""
        leaves = [tensor.double().requires_grad_() for tensor in (self.input, self.weight)]
        out = self.torch(torch.nn.functional.conv2d, *leaves)
        return torch.autograd.grad(out, leaves, grad.double())

    def of_weight(self) -> Tensor:
        return gradients.conv2d_weight(
            self.grad,
            self.input,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def of_input(self) -> Tensor:
        return gradients.conv2d_input(
            self.grad, self.weight, self.padding, self.dilation, self.groups
        )

    def has_of_input(self) -> bool:
        return self.stride == (1, 1) and all(
            p <= d * (k - 1)
            for p, d, k in zip(self.padding, self.dilation, self.kernel, strict=True)
        )


def signs(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float() * 2 - 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_whole_numbers_are_exact(level, case, memory_format):
    problem = Problem(case, "whole")
    problem.grad, problem.input, problem.weight = (
        tensor.contiguous(memory_format=memory_format)
        for tensor in (problem.grad, problem.input, problem.weight)
    )
    of_input, of_weight = problem.exact(problem.grad)
    assert torch.equal(problem.of_weight().double(), of_weight)
    if problem.has_of_input():
        assert torch.equal(problem.of_input().double(), of_input)


def test_some_have_gradients_to_the_input():
    assert sum(Problem(case).has_of_input() for case in CONVOLUTIONS) >= 5


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_rounding_is_within_its_bound(level, case):
    problem = Problem(case)
    exact = problem.exact(problem.grad)
    ones = Problem(case)
    ones.input, ones.weight = torch.ones_like(problem.input), torch.ones_like(problem.weight)
    magnitude = ones.exact(problem.grad.abs())
    images, _, out, *_ = case
    terms = (
        out // problem.groups * problem.kernel[0] * problem.kernel[1],
        images * problem.grad.shape[2] * problem.grad.shape[3],
    )
    found = [(problem.of_weight(), 1)]
    if problem.has_of_input():
        found.append((problem.of_input(), 0))
    for value, i in found:
        error = (value.double() - exact[i]).abs()
        assert (error <= (terms[i] + 3) * 2.0**-24 * magnitude[i]).all()


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_rounding_is_the_same_at_every_level_and_with_threads(case):
    problem = Problem(case)
    level, threads = _C.cpu_capability(), torch.get_num_threads()
    found = []
    try:
        for one in _C.cpu_capabilities():
            _C.set_cpu_capability(one)
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append([problem.of_weight()])
                if problem.has_of_input():
                    found[-1].append(problem.of_input())
    finally:
        _C.set_cpu_capability(level)
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("rows", [1, 5, 32, 70])
def test_linear_input(level, rows):
    weight = signs(37, 66)
    grad = torch.randint(-99, 100, (rows, 37)).float()
    assert torch.equal(gradients.linear_input(grad, weight), grad @ weight)


@pytest.mark.parametrize("sizes", [(0, 5, 7), (3, 0, 7), (3, 5, 0)])
def test_nothing_to_sum_gives_zeros(sizes):
    images, channels, out = sizes
    found = gradients.conv2d_weight(
        torch.zeros(images, out, 6, 4),
        torch.zeros(images, channels, 6, 4),
        (3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        1,
    )
    assert torch.equal(found, torch.zeros(out, channels, 3, 3))


def test_strides_of_the_gradient_do_not_matter():
    problem = Problem(CONVOLUTIONS[1])
    found = problem.of_weight()
    for order in ((0, 1, 3, 2), (3, 1, 0, 2), (1, 2, 3, 0)):
        back = tuple(order.index(i) for i in range(4))
        problem.grad = problem.grad.permute(order).contiguous().permute(back)
        assert torch.equal(problem.of_weight(), found)
    problem.grad = torch.ones(()).expand(problem.grad.shape)  # as of a sum
    assert torch.equal(problem.of_weight().double(), problem.exact(problem.grad)[1])


def test_nan_and_infinity_reach_the_weights_that_they_met():
    problem = Problem((4, 3, 2, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1))
    problem.grad[2, 1] = torch.nan
    found = problem.of_weight()
    assert found[1].isnan().all()
    assert found[0].isfinite().all()


def test_opcheck():
    problem = Problem(CONVOLUTIONS[5])
    torch.library.opcheck(
        torch.ops.bnn_ext.conv2d_weight_gradient,
        (
            problem.grad,
            ops.pack(problem.input.permute(1, 2, 3, 0)),
            problem.kernel,
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.groups,
        ),
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grad": torch.zeros(3, 7, 6)}, "grad must be float32"),
        ({"grad": torch.zeros(3, 7, 6, 4).double()}, "grad must be float32"),
        ({"grad": torch.zeros(3, 7, 6, 5)}, "size of the convolution's output"),
        ({"grad": torch.zeros(33, 7, 6, 4)}, "2 words in its last dimension, found 1"),
        ({"input": torch.zeros(5, 6, 4, 1)}, "input has the wrong dtype"),
        ({"input": torch.zeros(5, 6, 4, dtype=torch.int32)}, "wrong number of dimensions"),
        ({"groups": 2}, "groups must divide"),
        ({"groups": 0}, "groups must divide"),
        ({"stride": (0, 1)}, "must be positive"),
        ({"padding": (-1, 1)}, "padding not negative"),
        ({"kernel_size": (1 << 40, 1)}, "kernel_size must be at most"),
    ],
)
def test_direct_calls_are_checked(changed, message):
    arguments = {
        "grad": torch.zeros(3, 7, 6, 4),
        "input": torch.zeros(5, 6, 4, 1, dtype=torch.int32),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    torch.ops.bnn_ext.conv2d_weight_gradient(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bnn_ext.conv2d_weight_gradient(**(arguments | changed))
