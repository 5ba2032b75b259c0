"""Real inputs times binary weights, at every CPU level: uint8 exactly, floats within a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

from bnn_ext import _C, ops, reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def sum_bound(magnitudes: Tensor, additions: int) -> Tensor:
    """How far a float32 sum can be off.

    Each of the additions that an input goes through rounds by at most 2^-24 of a partial sum, and
    no partial sum exceeds the sum of all magnitudes; a little more for the bound's own second order
    and for the float64 reference.
    """
    return magnitudes * (additions * 2.0**-24 * 1.001)


def within(found: Tensor, expected: Tensor, bound: Tensor) -> bool:
    return bool(((found.double() - expected).abs() <= bound).all())


def check_outputs(
    op: str, sums: Tensor, bound: Tensor, channels_last: bool, **arguments: Any
) -> None:
    """All outputs of an operator for a float or uint8 input.

    Args:
        op: name of the operator that gives values.
        sums: what the sums are, float64, channels last.
        bound: how far float sums may be off, in the shape of `sums`.
        channels_last: whether the operator's values have channels last.
        arguments: of the operator, without scale and bias.
    """

    def values(**more: Any) -> Tensor:
        out = getattr(ops, op)(**arguments, **more)
        if channels_last:
            return out
        assert out.stride() == out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).stride()
        return out.permute(0, 2, 3, 1)

    channels = sums.shape[-1]
    integer = arguments["input"].dtype == torch.uint8
    if integer:
        found = values()
        assert found.dtype == torch.int32
        assert torch.equal(found, sums.to(torch.int32))
    else:
        arguments_as_floats = arguments | {"input": arguments["input"].float()}
        found = getattr(ops, op)(**arguments_as_floats)
        found = found if channels_last else found.permute(0, 2, 3, 1)
        assert found.dtype == torch.float32
        assert found.shape == sums.shape
        assert within(found, sums, bound)
        # What follows the sums is exact.
        scale, bias = random_affine(channels)
        for s, b in ((None, None), (scale, None), (None, bias), (scale, bias)):
            expected = reference.finish_float(found, s, b, arguments["input"].dtype)
            assert_same_floats(values(scale=s, bias=b), expected)
    threshold, flip = torch.randn(channels).to(found.dtype), random_packed(channels)
    if found.numel():
        typical = found[(-1,) * (found.dim() - 1)]  # at the last position
        threshold = torch.where(torch.rand(channels) < 0.5, typical, typical + threshold)
    for f in (None, flip):
        bits = getattr(ops, f"{op}_bits")(**arguments, threshold=threshold, flip=f)
        assert_same_packed(bits, reference.pack(found.contiguous(), threshold, f), channels)


def check_linear(input: Tensor, weight: Tensor, tiles: Tensor | None = None) -> None:
    k = input.shape[-1]
    sums = reference.real_linear_sums(input, weight, k)
    magnitudes = input.double().abs().sum(-1, keepdim=True).expand(sums.shape)
    check_outputs(
        "binary_weight_linear",
        sums,
        sum_bound(magnitudes, -(-k // 4) + 3),
        channels_last=True,
        input=input,
        weight=weight,
        in_features=k,
        tiles=tiles,
    )


def check_conv2d(input: Tensor, weight: Tensor, tiles: Tensor | None = None, **conv: Any) -> None:
    channels = input.shape[1]
    sums = reference.real_conv2d_sums(input, weight, channels, **conv)
    group_channels = channels // conv.get("groups", 1)
    ones = reference.pack(torch.ones(*weight.shape[:-1], group_channels))
    magnitude_conv = conv | {"pad_value": abs(conv.get("pad_value", 0))}
    magnitudes = reference.real_conv2d_sums(input.double().abs(), ones, channels, **magnitude_conv)
    taps = weight.shape[1] * weight.shape[2]
    check_outputs(
        "binary_weight_conv2d",
        sums,
        sum_bound(magnitudes, taps * -(-group_channels // 4) + 3),
        channels_last=False,
        input=input,
        weight=weight,
        in_channels=channels,
        tiles=tiles,
        **conv,
    )


def inputs(*shape: int) -> list[Tensor]:
    x = torch.randn(shape)
    return [*(x.to(dtype) for dtype in FLOATS), random_bytes(*shape)]


# --- linear ---------------------------------------------------------------------------------------


def test_sum_by_hand(level):
    """(0.5 -2 4) . (+1 +1 -1) = -5.5 and (0.5 -2 4) . (+1 -1 +1) = 6.5."""
    weight = torch.tensor([[0b011], [0b101]], dtype=torch.int32)
    x = torch.tensor([[0.5, -2, 4]])
    for function in (ops.binary_weight_linear, reference.binary_weight_linear):
        assert function(x, weight, 3).tolist() == [[-5.5, 6.5]]
    image = torch.tensor([[255, 0, 3]], dtype=torch.uint8)
    assert ops.binary_weight_linear(image, weight, 3).tolist() == [[252, 258]]
    threshold = torch.tensor([-5.5, 7.0])
    assert ops.binary_weight_linear_bits(x, weight, 3, threshold).tolist() == [[0b01]]


@pytest.mark.parametrize("k", SIZES)
def test_every_number_of_features(level, k):
    weight = random_packed(33, k)
    for x in inputs(5, k):
        check_linear(x, weight)


@pytest.mark.parametrize("out", SIZES)
def test_every_number_of_outputs(level, out):
    weight = random_packed(out, 65)
    for x in inputs(7, 65):
        check_linear(x, weight, ops.tile_weight(weight))


# Up to the register tile of 6 rows and past it, and around the 12 rows that share tables.
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25, 50])
def test_every_number_of_rows(level, rows):
    weight = random_packed(70, 100)
    for x in inputs(rows, 100):
        check_linear(x, weight)


@settings(max_examples=30)
@given(
    batch=st.lists(st.integers(0, 4), max_size=3),
    k=st.integers(0, 300),
    out=st.integers(0, 150),
    dtype=st.sampled_from((*FLOATS, torch.uint8)),
    seed=st.integers(0, 2**16),
)
def test_any_linear(level, batch, k, out, dtype, seed):
    torch.manual_seed(seed)
    x = random_bytes(*batch, k) if dtype == torch.uint8 else torch.randn(*batch, k).to(dtype)
    check_linear(x, random_packed(out, k))


# Inputs pass in pieces of 512 for twelve rows, of 6144 for one.
@pytest.mark.parametrize(("rows", "k"), [(1, 6143), (1, 6145), (1, 20_000), (12, 513), (13, 1700)])
def test_long_sums(level, rows, k):
    weight = random_packed(40, k)
    for x in (torch.randn(rows, k), random_bytes(rows, k)):
        check_linear(x, weight)


def test_largest_integer_sums(level):
    """Far beyond 2^24, where float32 sums would round."""
    k = 200_001
    x = torch.full((2, k), 255, dtype=torch.uint8)
    weight = reference.pack(torch.stack((torch.ones(k), -torch.ones(k))))
    assert ops.binary_weight_linear(x, weight, k).tolist() == [[255 * k, -255 * k]] * 2


def test_rows_that_lie_apart(level):
    weight = random_packed(33, 70)
    for x in (torch.randn(6, 4, 70).transpose(0, 1), torch.randn(140, 5).T[:, ::2]):
        check_linear(x, weight)
        check_linear((x * 50).clamp(0, 255).byte(), weight)
    check_linear(torch.randn(70).expand(4, 70), weight)


# --- convolution ----------------------------------------------------------------------------------


def memory_formats(x: Tensor) -> list[Tensor]:
    """The same map in every layout: NCHW, NHWC, and strides of neither."""
    padded = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)
    padded[..., ::2] = x
    return [x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, padded[..., ::2]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 36, 64, 100])
def test_every_number_of_channels(level, channels):
    weight = random_packed(18, 3, 3, channels)
    for x in inputs(2, channels, 5, 6):
        check_conv2d(x, weight, ops.tile_weight(weight), padding=(1, 1))


@pytest.mark.parametrize("out", [1, 15, 16, 17, 32, 33, 64, 65, 96, 129, 160])
def test_every_number_of_output_channels(level, out):
    weight = random_packed(out, 2, 3, 3)
    for x in inputs(2, 3, 5, 6):
        check_conv2d(x, weight)


@pytest.mark.parametrize("width", range(1, 20))
def test_every_width(level, width):
    weight = random_packed(70, 3, 3, 3)
    check_conv2d(torch.randn(1, 3, 4, width), weight, padding=(1, 1))


@pytest.mark.parametrize(
    ("groups", "channels", "out"), [(2, 6, 64), (3, 99, 9), (2, 10, 34), (5, 5, 5), (4, 16, 96)]
)
def test_groups(level, groups, channels, out):
    weight = random_packed(out, 3, 2, channels // groups)
    for x in inputs(2, channels, 5, 6):
        check_conv2d(x, weight, ops.tile_weight(weight, groups), groups=groups, padding=(1, 0))


@settings(max_examples=60)
@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 4),
    group_channels=st.integers(1, 40),
    group_out=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    more=st.tuples(st.integers(0, 8), st.integers(0, 12)),
    pad_value=st.sampled_from((-1, 0, 1)),
    layout=st.integers(0, 3),
    dtype=st.sampled_from((*FLOATS, torch.uint8)),
    seed=st.integers(0, 2**16),
)
def test_any_conv2d(
    level,
    batch,
    groups,
    group_channels,
    group_out,
    kernel,
    stride,
    padding,
    dilation,
    more,
    pad_value,
    layout,
    dtype,
    seed,
):
    torch.manual_seed(seed)
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + m
        for d, k, p, m in zip(dilation, kernel, padding, more, strict=True)
    ]
    shape = (batch, groups * group_channels, *size)
    x = random_bytes(*shape) if dtype == torch.uint8 else torch.randn(shape).to(dtype)
    check_conv2d(
        memory_formats(x)[layout],
        random_packed(groups * group_out, *kernel, group_channels),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pad_value=pad_value,
    )


def test_maps_without_channels(level):
    """Sums of nothing, which torch's convolution does not give."""
    for x in (torch.empty(2, 0, 3, 4), random_bytes(2, 0, 3, 4)):
        out = ops.binary_weight_conv2d(x, random_packed(20, 3, 3, 0), 0, padding=1)
        assert torch.equal(out, torch.zeros(2, 20, 3, 4, dtype=out.dtype))


def test_maps_too_wide_for_one_ring_of_tables(level):
    """Wide maps are cut into columns; also where the pieces are unequal."""
    for channels, width, stride in ((64, 150, 1), (200, 61, 2)):
        x, weight = torch.randn(2, channels, 6, width), random_packed(20, 3, 3, channels)
        check_conv2d(x, weight, stride=(1, stride), padding=(1, 1))


def test_memory_formats_give_the_same_bits(level):
    x, weight = torch.randn(2, 37, 9, 10), random_packed(40, 3, 3, 37)
    expected = ops.binary_weight_conv2d(x, weight, 37, padding=1)
    for other in memory_formats(x):
        assert torch.equal(ops.binary_weight_conv2d(other, weight, 37, padding=1), expected)


def test_zero_padding_adds_nothing(level):
    """Windows that see padding alone, and the exact 0 there."""
    x, weight = torch.randn(1, 5, 2, 2), random_packed(20, 2, 2, 5)
    out = ops.binary_weight_conv2d(x, weight, 5, padding=4, stride=2)
    sees_padding_alone = reference.real_conv2d_sums(
        torch.ones_like(x),
        reference.pack(torch.ones(20, 2, 2, 5)),
        5,
        (2, 2),
        (4, 4),
    ).permute(0, 3, 1, 2)
    assert (sees_padding_alone == 0).any()
    assert (out[sees_padding_alone == 0] == 0).all()


# --- the order of sums ----------------------------------------------------------------------------


def at_level(level: str, function: Callable[[], Tensor]) -> Tensor:
    before = _C.cpu_capability()
    _C.set_cpu_capability(level)
    try:
        return function()
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.parametrize("k", [3, 50, 1000, 7000])
def test_sums_are_the_same_bits_at_every_level_and_in_every_batch(k):
    x, weight = torch.randn(30, k), random_packed(70, k)
    levels = _C.cpu_capabilities()
    results = [at_level(la, lambda: ops.binary_weight_linear(x, weight, k)) for la in levels]
    for result in results:
        assert torch.equal(result, results[0])
    for rows in (1, 5, 13):
        assert torch.equal(ops.binary_weight_linear(x[:rows], weight, k), results[0][:rows])


def test_order_of_a_sum(level):
    """Four inputs at a time, one quad after the other, each addition rounded to float32."""
    for k in (11, 64, 4001):
        x, weight = torch.randn(6, k), random_packed(20, k)
        terms = x[:, None, :] * reference.unpack(weight, k)
        terms = torch.nn.functional.pad(terms, (0, -k % 4)).unflatten(-1, (-1, 4))
        quads = ((terms[..., 0] + terms[..., 1]) + terms[..., 2]) + terms[..., 3]
        expected = torch.zeros(6, 20)
        for quad in quads.unbind(-1):
            expected += quad
        assert torch.equal(ops.binary_weight_linear(x, weight, k), expected)


def test_convolution_adds_in_the_order_of_its_taps(level):
    """A convolution with one output position is the linear layer on its taps in a row."""
    x, weight = torch.randn(3, 8, 3, 5), random_packed(40, 3, 5, 8)
    rows = x.permute(0, 2, 3, 1).flatten(1)
    row_weight = reference.pack(reference.unpack(weight, 8).flatten(1))
    expected = ops.binary_weight_linear(rows, row_weight, 120)
    assert torch.equal(ops.binary_weight_conv2d(x, weight, 8).flatten(1), expected)


def test_two_threads_give_the_bits_of_one(two_threads):
    x, weight = torch.randn(1, 5000), random_packed(1000, 5000)
    maps, kernel = torch.randn(2, 24, 40, 50), random_packed(70, 3, 3, 24)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        results.append(
            (
                ops.binary_weight_linear(x, weight, 5000),
                ops.binary_weight_linear(x.expand(50, -1), weight, 5000),
                ops.binary_weight_conv2d(maps, kernel, 24, padding=1),
            )
        )
    assert all(map(torch.equal, *results))


# --- values that are not ordinary -----------------------------------------------------------------


def test_nan_and_infinity_as_in_torch(level):
    """NaN where torch gives NaN, infinities where torch gives them; their bits are 0 for NaN."""
    inf, nan = float("inf"), float("nan")
    x = torch.randn(40, 30)
    for row, odd in enumerate(([nan], [inf], [-inf], [inf, inf], [inf, -inf], [nan, inf]) * 6):
        x[row, torch.randperm(30)[: len(odd)]] = torch.tensor(odd)
    weight = random_packed(50, 30)
    expected = torch.nn.functional.linear(x, reference.unpack(weight, 30))
    found = ops.binary_weight_linear(x, weight, 30)
    assert expected.isnan().any() and expected.isinf().any()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[expected.isinf()], expected[expected.isinf()])

    threshold = torch.randn(50)
    threshold[:5] = torch.tensor([inf, -inf, nan, 0.0, -0.0])
    for flip in (None, random_packed(50)):
        bits = ops.binary_weight_linear_bits(x, weight, 30, threshold, flip)
        assert torch.equal(bits, reference.pack(found, threshold, flip))
        assert not reference.unpack_bits(bits, 50)[found.isnan()].any()


def test_sums_that_cancel_or_vanish_are_plus_zero(level):
    """As in torch: the sign bit matters to `1 / x`, though not to a threshold."""
    x = torch.zeros(3, 9)
    x[1] = -0.0
    x[2, :2] = 1.5
    weight = reference.pack(torch.tensor([[1.0, -1] + [1] * 7, [-1.0, 1] + [-1] * 7]))
    out = ops.binary_weight_linear(x, weight, 9)
    assert (out == 0).all() and not out.signbit().any()


def test_half_precision_is_rounded_once(level):
    """The sums stay float32 until scale and bias are in."""
    k = 3000
    weight = random_packed(64, k)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(4, k).to(dtype)
        scale, bias = random_affine(64)
        sums = ops.binary_weight_linear(x.float(), weight, k)
        expected = reference.finish_float(sums, scale, bias, dtype)
        early = reference.finish_float(sums.to(dtype), scale, bias, dtype)
        assert not torch.equal(expected, early)  # the input tells the two apart
        assert_same_floats(ops.binary_weight_linear(x, weight, k, scale, bias), expected)
