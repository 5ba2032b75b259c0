"""Epilogues of real values against the reference, at every CPU level."""

from __future__ import annotations

import pytest
import torch
from packed_inputs import SIZES, assert_same_floats, assert_same_packed, random_packed
from test_ops_fused import FLOATS, assert_same, steps_for
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bnn_ext import _extension, ops, reference


def check(input: Tensor, *arguments: object) -> None:
    expected = reference.elementwise(input, *arguments)
    assert_same(ops.elementwise(input, *arguments), expected, input.shape[-1])


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_step_and_number_of_channels(level, channels, dtype):
    input = torch.randn(2, 17, channels).to(dtype)
    steps = steps_for(tuple(input.shape), dtype)
    threshold, flip = torch.randn(channels) / 4, random_packed(channels)
    for out in (*FLOATS, None):
        check(input, steps, out, threshold, flip)
    check(input, steps, dtype)
    check(input, (), None, threshold)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_values_of_every_kind(level, dtype, out):
    """Every value of 16 bits: zeros, subnormals, infinities and NaN among them."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    input = bits.view(torch.float16 if dtype == torch.float16 else torch.bfloat16).to(dtype)
    check(input.view(-1, 64), [("multiply", torch.rand(64) + 0.5)], out, torch.zeros(64))


@pytest.mark.parametrize("shape", [(40,), (0, 40), (2, 0, 40), (3, 0), (1, 40), (2, 3, 4, 5, 6)])
def test_shapes(level, shape):
    input, channels = torch.randn(shape), shape[-1]
    check(input, [("add", torch.randn(channels))], torch.float32, torch.zeros(channels))


def test_input_of_any_strides():
    x = torch.randn(2, 40, 5, 6)
    for input in (
        x.permute(0, 2, 3, 1),
        x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        x[:, ::2, ::2].permute(0, 2, 3, 1),
        x[0, 0, 0].expand(3, 6),
        torch.randn(70)[::2],
    ):
        steps = [("add", torch.randn(tuple(input.shape)).flip(0))]
        floats, _ = ops.elementwise(input, steps, torch.float32)
        assert floats is not None and floats.is_contiguous()
        check(input, steps, torch.float32, torch.zeros(input.shape[-1]))


def test_the_input_stays_and_is_not_the_result():
    input = torch.randn(3, 40)
    before = input.clone()
    for steps in ((), [("multiply", torch.zeros(40))]):
        floats, _ = ops.elementwise(input, steps, torch.float32)
        assert floats is not None
        floats.fill_(7)
        assert torch.equal(input, before)


def test_what_follows_a_real_layer(level):
    """Batch norm, residual, PReLU and sign, as torch computes them."""
    x, residual = torch.randn(2, 40, 5, 6), torch.randn(2, 40, 5, 6)
    norm, prelu = torch.nn.BatchNorm2d(40).eval(), torch.nn.PReLU(40)
    torch.nn.init.normal_(norm.running_mean)
    with torch.no_grad():
        factor = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
        addend = reference.multiply_add(-norm.running_mean, factor, norm.bias)
        normed = reference.multiply_add(x, factor[:, None, None], addend[:, None, None])
        expected = prelu(normed + residual).permute(0, 2, 3, 1)
        steps: list[ops.Step] = [
            ("multiply_add", factor, addend),
            ("add", residual.permute(0, 2, 3, 1)),
            ("prelu", prelu.weight),
        ]
        input = x.permute(0, 2, 3, 1)
        floats, bits = ops.elementwise(input, steps, torch.float32, torch.zeros(40))
    assert_same_floats(floats, expected)
    assert_same_packed(bits, reference.pack(expected), 40)


def test_two_threads_give_the_same(two_threads):
    input = torch.randn(4, 28, 28, 100)
    check(input, steps_for((4, 28, 28, 100), torch.float32), torch.float32, torch.zeros(100))


@pytest.mark.parametrize("out", [torch.float32, torch.float16, None])
@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype, out):
    operands = [torch.randn(40), torch.randn(2, 3, 40), torch.randn(40), torch.randn(40)]
    rest = ([0, 1, 5], operands, out, torch.randn(40), random_packed(40))
    for input in (torch.randn(2, 3, 40), torch.randn(2, 40, 3).mT):
        torch.library.opcheck(torch.ops.bnn_ext.elementwise, (input.to(dtype), *rest))


def test_compiled():
    input, factor, addend = torch.randn(5, 40), torch.randn(40), torch.randn(40)

    def run(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        steps: list[ops.Step] = [("multiply_add", factor, addend)]
        return ops.elementwise(x, steps, torch.float16, torch.zeros(40))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_same(compiled(input), run(input), 40)


def test_wrong_arguments_of_the_operator_itself():
    """What the wrapper refuses must not read out of bounds when it is called around."""
    call, input, one = torch.ops.bnn_ext.elementwise, torch.ones(2, 5), torch.ones(5)
    for wrong in (
        (torch.tensor(1.0), [], [], torch.float32, None, None),
        (input.double(), [], [], torch.float32, None, None),
        (input.int(), [], [], torch.float32, None, None),
        (input, [0], [], torch.float32, None, None),
        (input, [0], [torch.ones(4)], torch.float32, None, None),
        (input, [0], [torch.ones(3, 5)], torch.float32, None, None),
        (input, [5], [one, torch.ones(2, 5)], torch.float32, None, None),
        (input, [], [], torch.int32, None, None),
        (input, [], [], None, None, None),
        (input, [], [], None, torch.ones(4), None),
        (input, [], [], None, one, torch.zeros(2).int()),
    ):
        with pytest.raises(RuntimeError):
            call(*wrong)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "^input must be a tensor, found list"),
        ({"input": torch.ones(2, 5).double()}, TypeError, "^input must be torch.float32"),
        ({"input": torch.tensor(1.0)}, ValueError, "^input must have at least 1 dimension"),
        ({"input": torch.ones(2, 5, requires_grad=True)}, ValueError, "^input must not require"),
        ({"steps": [("power", torch.ones(5))]}, ValueError, "steps must be named .* 'power'"),
        ({"steps": [("add", torch.ones(5, 2))]}, ValueError, r"shape \(2, 5\), found .*\(5, 2\)"),
        ({"steps": [("add", torch.ones(5).to("meta"))]}, ValueError, "must be on cpu"),
        ({"dtype": None}, ValueError, "^dtype or threshold must be given"),
        ({"dtype": torch.int32}, TypeError, "^dtype must be one of"),
        ({"threshold": torch.zeros(4)}, ValueError, "^threshold must have 5 elements, found 4"),
        ({"flip": torch.zeros(1, dtype=torch.int32)}, ValueError, "^flip needs a threshold"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        ops.elementwise(**({"input": torch.ones(2, 5), "dtype": torch.float32} | changes))


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_devices_without_kernels_are_named(device, monkeypatch):
    monkeypatch.setattr(_extension, "has_cuda", False)
    with FakeTensorMode(), pytest.raises(ValueError, match=rf"^input\b.*{device}:0"):
        ops.elementwise(torch.empty(2, 5, device=device), (), torch.float32)
