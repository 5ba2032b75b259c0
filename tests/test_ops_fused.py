"""Epilogues of the packed operators against the reference, at every CPU level."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import (
    SIZES,
    assert_same_floats,
    assert_same_packed,
    random_affine,
    random_packed,
)
from torch import Tensor

from bnn_ext import ops, reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
GEOMETRY = (130, (1, 2), (1, 1), (2, 1), 1, 0)  # in_channels, stride, padding, dilation, ...


def steps_for(shape: tuple[int, ...], dtype: torch.dtype) -> list[ops.Step]:
    """Every step with both kinds of operand; `dtype` is that of the operands per output."""
    channels = shape[-1]
    scale, bias = random_affine(channels)
    return [
        ("multiply", scale),
        ("add", bias),
        ("add", torch.randn(shape).to(dtype)),
        ("prelu", torch.randn(channels)),
        ("multiply", torch.randn(shape).to(dtype)),
        ("maximum", -torch.rand(channels)),
        ("minimum", torch.rand(shape).to(dtype)),
        ("maximum", (torch.rand(shape) - 2).to(dtype)),
        ("minimum", torch.rand(channels) + 1),
        ("prelu", torch.rand(shape).to(dtype)),
        ("multiply_add", scale, bias),
        ("float16",),
        ("divide", scale),
        ("divide", torch.randn(shape).to(dtype)),
        ("bfloat16",),
    ]


def assert_same(actual: tuple, expected: tuple, channels: int) -> None:
    for a, e, same in zip(actual, expected, ("floats", "bits"), strict=True):
        if e is None:
            assert a is None
        elif same == "floats":
            assert_same_floats(a, e)
        else:
            assert_same_packed(a, e, channels)


def random_conv(out: int) -> tuple[Tensor, Tensor]:
    return random_packed(2, 7, 9, 130), random_packed(out, 3, 3, 130)


@pytest.mark.parametrize("out", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_conv_with_every_step_and_number_of_channels(level, out, dtype):
    input, weight = random_conv(out)
    shape = tuple(reference.conv2d(input, weight, *GEOMETRY).shape)
    steps = steps_for(shape, dtype)
    threshold, flip = torch.randn(out) / 4, random_packed(out)
    for f in (None, flip):
        arguments = (input, weight, *GEOMETRY, steps, dtype, threshold, f)
        assert_same(ops.conv2d_fused(*arguments), reference.conv2d_fused(*arguments), out)


@pytest.mark.parametrize("out", [1, 31, 64, 100])
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 70])
def test_linear(level, out, rows):
    input, weight = random_packed(rows, 90), random_packed(out, 90)
    steps = steps_for((rows, out), torch.float32)
    arguments = (input, weight, 90, steps, torch.float32, torch.randn(out))
    assert_same(ops.linear_fused(*arguments), reference.linear_fused(*arguments), out)
    higher = ops.linear_fused(input[:, None], weight, 90)[0]
    assert_same_floats(higher[:, 0], reference.linear_float(input, weight, 90))


def test_any_number_of_windows(level):
    """Kernels take several windows at a time, and the rest of a tile by fewer."""
    out = 50
    inputs, weight = random_packed(32, 40), random_packed(out, 40)
    threshold, flip = torch.randn(out), random_packed(out)
    for rows in range(1, 33):
        dtype = FLOATS[rows % len(FLOATS)]
        arguments = (inputs[:rows], weight, 40, steps_for((rows, out), dtype), dtype)
        actual = ops.linear_fused(*arguments, threshold, flip)
        assert_same(actual, reference.linear_fused(*arguments, threshold, flip), out)


@pytest.mark.parametrize("name", ops.STEPS)
def test_each_step_alone(level, name):
    """Also on NaN, infinities, zeros of both signs and values that are equal."""
    input, weight = random_packed(3, 64), random_packed(64, 64)
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 2.0, -2.0, 1e-40])
    steps: list[ops.Step] = [(name, values.repeat(8)), (name, values.repeat(24).view(3, 64))]
    if name == "multiply_add":
        steps = [(name, values.repeat(8), values.repeat_interleave(8))]
    if name in ("float16", "bfloat16"):
        steps = [(name,)]
    for step in steps:
        for first in ((), [("multiply", torch.zeros(64))], [("multiply", values.repeat(8))]):
            arguments = (input, weight, 64, [*first, step])
            threshold = torch.zeros(64)
            actual = ops.linear_fused(*arguments, threshold=threshold)
            assert_same(actual, reference.linear_fused(*arguments, threshold=threshold), 64)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("out", [32, 20])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_groups_whose_bits_share_words(level, groups, out, dtype):
    input = random_packed(1, 5, 5, 40 * groups)
    weight = random_packed(out * groups, 3, 3, 40)
    threshold, flip = torch.randn(out * groups), random_packed(out * groups)
    arguments = (input, weight, 40 * groups, 1, 1, 1, groups, 0)
    expected = reference.conv2d_fused(
        input, weight, 40 * groups, (1, 1), (1, 1), (1, 1), groups, 0, (), dtype, threshold, flip
    )
    actual = ops.conv2d_fused(*arguments, (), dtype, threshold, flip)
    assert_same(actual, expected, out * groups)


def test_bits_are_those_of_the_rounded_values(level):
    """A sum times 1e-10 is 0 in float16: its sign is that of zero, as a layer behind would see."""
    input, weight = random_packed(4, 64), random_packed(64, 64)
    steps = [("multiply", torch.full((64,), 1e-10)), ("maximum", torch.zeros(64))]
    threshold = torch.full((64,), 1e-12)
    _, bits = ops.linear_fused(input, weight, 64, steps, torch.float16, threshold)
    assert not bits.any()
    _, bits = ops.linear_fused(input, weight, 64, steps, torch.float32, threshold)
    assert bits.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision(level, dtype):
    """To nearest, ties to even, also subnormal and beyond the largest number, as torch rounds."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()]
    halfway = (every + every.roll(1)) / 2
    values = torch.cat([every, halfway, torch.nextafter(halfway, torch.tensor(torch.inf))])
    values = torch.cat([values, torch.randn(4096), torch.tensor([65519.0, 65520.0, 3e38, 1e-30])])
    step = str(dtype).removeprefix("torch.")
    found, bits = ops.elementwise(values[:, None], [(step,)], torch.float32, torch.zeros(1))
    assert torch.equal(found[:, 0], values.to(dtype).float())
    assert torch.equal(found[:, 0].signbit(), values.signbit())
    assert torch.equal(bits[:, 0], (values.to(dtype) >= 0).int())


@settings(max_examples=150)
@given(
    images=st.integers(0, 2),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from((1, 1, 2, 3)),
    group_channels=st.sampled_from((3, 32, 70)),
    group_out=st.sampled_from((7, 16, 33, 64, 67)),
    numbers=st.lists(st.tuples(st.sampled_from(ops.STEPS), st.booleans()), max_size=5),
    dtype=st.sampled_from((*FLOATS, None)),
    bits=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_steps(
    level, images, size, padding, groups, group_channels, group_out, numbers, dtype, bits, seed
):
    torch.manual_seed(seed)
    channels, out = groups * group_channels, groups * group_out
    input, weight = random_packed(images, *size, channels), random_packed(out, 3, 3, group_channels)
    geometry = (channels, (1, 1), padding, (1, 1), groups, 0)
    shape = reference.conv2d(input, weight, *geometry).shape
    steps: list[ops.Step] = [
        (name, torch.randn(out), torch.randn(out))
        if name == "multiply_add"
        else (name,)
        if name in ("float16", "bfloat16")
        else (name, torch.randn(shape if each else (out,)))
        for name, each in numbers
    ]
    threshold = torch.randn(out) if bits or dtype is None else None
    arguments = (input, weight, *geometry, steps, dtype, threshold)
    assert_same(ops.conv2d_fused(*arguments), reference.conv2d_fused(*arguments), out)


# --- multiply_add ---------------------------------------------------------------------------------


def fused_multiply_add(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """The step on vectors: a sum of 1, multiplied by x before."""
    one = torch.ones(1, 1, dtype=torch.int32)
    steps: list[ops.Step] = [("multiply", x), ("multiply_add", factor, addend)]
    result, _ = ops.linear_fused(one, one.expand(len(x), 1), 1, steps)
    assert result is not None
    return result[0]


def random_floats(count: int) -> Tensor:
    """All exponents and signs, few digits or many, zeros, infinities and NaN."""
    bits = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64).to(torch.int32)
    few = torch.randint(2, (count,), dtype=torch.bool)
    return torch.where(few, bits & -(2**18), bits).view(torch.float32)


def rounded(exact: Fraction) -> float:
    """The nearest float32; halfway between two, the one with an even last bit."""
    exponent = math.frexp(exact)[1]
    unit = Fraction(2) ** max(exponent - 24, -149)
    whole = round(exact / unit) * unit  # Python rounds halves to even, too
    return math.copysign(math.inf, whole) if abs(whole) >= 2**128 else float(whole)


def test_multiply_add_is_exact_arithmetic_rounded_once(level):
    count = 4000
    x, factor, addend = (random_floats(count) for _ in range(3))
    # Many that cancel the product or lie far below it.
    near = torch.ldexp(x * factor, torch.randint(-60, 1, (count,)))
    addend = torch.where(torch.arange(count) % 4 == 0, addend, -near)
    # (1 + 2**-12)**2 lies halfway between two values, and float64 does not hold 2**-80 more.
    x[0], factor[0], addend[0] = 1 + 2**-12, 1 + 2**-12, 2.0**-80
    finite = x.isfinite() & factor.isfinite() & addend.isfinite()
    x, factor, addend = x[finite], factor[finite], addend[finite]
    assert len(x) > count / 2
    exact = (
        Fraction(a) * Fraction(b) + Fraction(c)
        for a, b, c in zip(x.tolist(), factor.tolist(), addend.tolist(), strict=True)
    )
    expected = torch.tensor([*map(rounded, exact)])
    assert torch.equal(fused_multiply_add(x, factor, addend), expected)
    assert torch.equal(reference.multiply_add(x, factor, addend), expected)
    rounded_twice = (x.double() * factor + addend).float()
    assert not torch.equal(rounded_twice, expected), "no example needs the single rounding"


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch rounds twice on a CPU without fused multiply-add",
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_multiply_add_is_the_batch_norm_of_torch(level, memory_format):
    norm = torch.nn.BatchNorm2d(70).eval()
    for parameter in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(norm.running_var, 0.1, 9.0)
    input, weight = random_conv(70)
    sums = ops.conv2d(input, weight, *GEOMETRY).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = norm(sums.contiguous(memory_format=memory_format))
        factor = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
        addend = reference.multiply_add(-norm.running_mean, factor, norm.bias)
        steps: list[ops.Step] = [("multiply_add", factor, addend)]
        actual, _ = ops.conv2d_fused(input, weight, *GEOMETRY, steps)
    assert_same_floats(actual.permute(0, 3, 1, 2), expected)


def test_two_threads_give_the_same(two_threads):
    input, weight = random_packed(4, 28, 28, 128), random_packed(128, 3, 3, 128)
    steps = steps_for((4, 28, 28, 128), torch.float32)
    geometry = (128, (1, 1), (1, 1), (1, 1), 1, 0)
    arguments = (input, weight, *geometry, steps, torch.float32, torch.zeros(128))
    assert_same(ops.conv2d_fused(*arguments), reference.conv2d_fused(*arguments), 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, None])
@pytest.mark.parametrize("tiled", [True, False])
def test_opcheck(dtype, tiled):
    input, weight = random_conv(40)
    sums = ops.conv2d(input, weight, *GEOMETRY)
    operands = [torch.randn(40), torch.randn(sums.shape)]
    tiles = ops.tile_weight(weight) if tiled else None
    rest = ([0, 1], operands, dtype, torch.randn(40), random_packed(40), tiles)
    geometry = (130, [1, 2], [1, 1], [2, 1], 1, 0)
    torch.library.opcheck(torch.ops.bnn_ext.conv2d_fused, (input, weight, *geometry, *rest))

    input, weight = random_packed(2, 3, 90), random_packed(40, 90)
    operands = [torch.randn(40), torch.randn(2, 3, 40)]
    rest = ([0, 1], operands, dtype, torch.randn(40), None, None)
    torch.library.opcheck(torch.ops.bnn_ext.linear_fused, (input, weight, 90, *rest))


def test_wrong_arguments_of_the_operator_itself():
    """What the wrapper refuses must not read out of bounds when it is called around."""
    call = torch.ops.bnn_ext.linear_fused
    input, weight, one = random_packed(2, 70), random_packed(5, 70), torch.ones(5)
    for operations, operands, dtype, threshold in (
        ([0], [], torch.float32, None),
        ([0], [one, one], torch.float32, None),
        ([5], [one], torch.float32, None),
        ([5], [one, torch.ones(2, 5)], torch.float32, None),
        ([5, 0], [one, one], torch.float32, None),
        ([7], [one], torch.float32, None),
        ([-1], [one], torch.float32, None),
        ([0], [torch.ones(4)], torch.float32, None),
        ([0], [torch.ones(2, 4)], torch.float32, None),
        ([0], [one.double()], torch.float32, None),
        ([0], [torch.ones(2, 5).int()], torch.float32, None),
        ([0], [one], torch.int32, None),
        ([0], [one], None, None),
        ([0], [one], torch.float32, torch.ones(4)),
    ):
        with pytest.raises(RuntimeError):
            call(input, weight, 70, operations, operands, dtype, threshold, None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": [("power", torch.ones(5))]}, ValueError, "steps must be named .* 'power'"),
        ({"steps": [("add", 1.0)]}, TypeError, "operand of 'add' in steps must be a tensor"),
        ({"steps": [("add", torch.ones(4))]}, ValueError, "must have 5 elements, found 4"),
        ({"steps": [("add", torch.ones(2, 4))]}, ValueError, r"shape \(2, 5\), found .*\(2, 4\)"),
        ({"steps": [("add", torch.ones(5, dtype=torch.float64))]}, TypeError, "float32"),
        ({"steps": [("add", torch.ones(5), torch.ones(5))]}, ValueError, "1 operands, found 2"),
        ({"steps": [("multiply_add", torch.ones(5))]}, ValueError, "2 operands, found 1"),
        (
            {"steps": [("multiply", *[torch.ones(5)] * 2), ("multiply_add", torch.ones(5))]},
            ValueError,
            "'multiply' in steps must have 1 operands, found 2",
        ),
        (
            {"steps": [("multiply_add", torch.ones(5), torch.ones(2, 5))]},
            ValueError,
            r"addend of 'multiply_add' in steps must have 1 dimensions, found shape \(2, 5\)",
        ),
        (
            {"steps": [("multiply_add", torch.ones(5).half(), torch.ones(5))]},
            TypeError,
            "factor of 'multiply_add' in steps must be torch.float32",
        ),
        ({"dtype": None}, ValueError, "dtype or threshold must be given"),
        ({"dtype": torch.float64}, TypeError, "dtype must be one of"),
        ({"flip": torch.zeros(1, dtype=torch.int32)}, ValueError, "flip needs a threshold"),
        ({"threshold": torch.zeros(4)}, ValueError, "threshold must have 5 elements, found 4"),
        (
            {"steps": [("add", torch.ones(2, 5, requires_grad=True))]},
            ValueError,
            "must not require a gradient",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        ops.linear_fused(random_packed(2, 70), random_packed(5, 70), 70, **changes)
