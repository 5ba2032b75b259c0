"""Packed 2-d convolutions against the reference, at every CPU level."""

from __future__ import annotations

from typing import NamedTuple

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
    random_thresholds,
)
from torch import Tensor

from bnn_ext import ops, reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Conv(NamedTuple):
    """The arguments between the tensors and the outputs."""

    in_channels: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    pad_value: int = 0


def check_all_outputs(
    input: Tensor,
    weight: Tensor,
    conv: Conv,
    dtype: torch.dtype = torch.float32,
    tiled: bool = True,
) -> None:
    out = weight.shape[0]
    tiles = ops.tile_weight(weight, conv.groups) if tiled else None
    sums = reference.conv2d(input, weight, *conv)
    assert torch.equal(ops.conv2d(input, weight, *conv, tiles=tiles), sums)

    k = weight.shape[1] * weight.shape[2] * conv.in_channels // conv.groups
    threshold, flip = random_thresholds(out, k)
    for f in (None, flip):
        bits = ops.conv2d_bits(input, weight, *conv, threshold=threshold, flip=f, tiles=tiles)
        expected = reference.conv2d_bits(input, weight, *conv, threshold=threshold, flip=f)
        assert_same_packed(bits, expected, out)

    scale, bias = random_affine(out)
    floats = ops.conv2d_float(input, weight, *conv, scale, bias, dtype, tiles=tiles)
    expected = reference.conv2d_float(input, weight, *conv, scale, bias, dtype)
    assert_same_floats(floats, expected)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad_value", "sum"), [(0, 1), (1, 9), (-1, -7)])
def test_padding_by_hand(level, pad_value, sum):
    """One pixel of +1 under a 3x3 kernel of +1: eight taps see the padding."""
    pixel, kernel = reference.pack(torch.ones(1, 1, 1, 1)), reference.pack(torch.ones(1, 3, 3, 1))
    assert ops.conv2d(pixel, kernel, 1, padding=1, pad_value=pad_value).item() == sum
    conv = Conv(1, padding=(1, 1), pad_value=pad_value)
    assert reference.conv2d(pixel, kernel, *conv).item() == sum


@pytest.mark.parametrize("channels", SIZES)
def test_every_number_of_channels(level, channels):
    input, weight = random_packed(2, 5, 6, channels), random_packed(33, 3, 3, channels)
    for pad_value in (-1, 0, 1):
        conv = Conv(channels, padding=(1, 1), pad_value=pad_value)
        check_all_outputs(input, weight, conv)


@pytest.mark.parametrize("out", SIZES)
def test_every_number_of_outputs(level, out):
    input, weight = random_packed(1, 5, 6, 40), random_packed(out, 3, 3, 40)
    check_all_outputs(input, weight, Conv(40, padding=(1, 1)))


@pytest.mark.parametrize("channels", [1, 5, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("out", [1, 3, 16, 31, 32, 33, 64, 65])
def test_every_size_of_groups(level, channels, out):
    groups = 3
    input = random_packed(2, 4, 5, groups * channels)
    weight = random_packed(groups * out, 3, 2, channels)
    for pad_value in (-1, 0, 1):
        conv = Conv(groups * channels, (2, 1), (1, 1), (1, 2), groups, pad_value)
        check_all_outputs(input, weight, conv)


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 100])
def test_depthwise(level, channels):
    input, weight = random_packed(2, 6, 5, channels), random_packed(channels, 3, 3, 1)
    check_all_outputs(input, weight, Conv(channels, padding=(1, 1), groups=channels))


# Maps whose longer side runs across or down, in one, two or three tasks of 48 windows.
@pytest.mark.parametrize("size", [(2, 48), (2, 49), (3, 145), (48, 2), (100, 3), (50, 50)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
def test_long_lines(level, size, padding):
    input, weight = random_packed(1, *size, 40), random_packed(20, 1, 2, 40)
    check_all_outputs(input, weight, Conv(40, padding=padding))


@pytest.mark.parametrize("words", [10, 11, 16, 31, 62, 200])
def test_largest_and_smallest_sums_do_not_overflow(level, words):
    """Counts kept in bytes for up to 31 words, across the rows of the kernel."""
    k = 32 * words
    plus, minus = reference.pack(torch.ones(1, 3, 4, k)), reference.pack(-torch.ones(1, 3, 4, k))
    weight = reference.pack(torch.ones(17, 3, 3, k))
    for dilation in (1, (1, 1)):
        assert ops.conv2d(plus, weight, k, dilation=dilation).unique().tolist() == [9 * k]
        assert ops.conv2d(minus, weight, k, dilation=dilation).unique().tolist() == [-9 * k]


# --- all parameters crossed -----------------------------------------------------------------------


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Input size, kernel size, stride, padding, dilation of one axis.

    The padding suffices for kernels larger than the input and for windows that see only padding.
    """
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (5, 3, 3))
    padding = draw(st.integers(0, 5))
    least = max(0, dilation * (kernel - 1) + 1 - 2 * padding)
    return draw(st.integers(least, least + 6)), kernel, stride, padding, dilation


@settings(max_examples=250)
@given(
    images=st.integers(0, 2),
    vertical=axes(),
    horizontal=axes(),
    groups=st.sampled_from((1, 1, 2, 3, 5)),
    group_channels=st.sampled_from((1, 3, 31, 32, 33, 64, 70)),
    group_out=st.sampled_from((1, 7, 16, 31, 32, 33, 64, 67)),
    pad_value=st.sampled_from((-1, 0, 1)),
    dtype=st.sampled_from(FLOATS),
    tiled=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_all_parameters_crossed(
    level,
    images,
    vertical,
    horizontal,
    groups,
    group_channels,
    group_out,
    pad_value,
    dtype,
    tiled,
    seed,
):
    torch.manual_seed(seed)
    size, kernel, stride, padding, dilation = zip(vertical, horizontal, strict=True)
    input = random_packed(images, *size, groups * group_channels)
    weight = random_packed(groups * group_out, *kernel, group_channels)
    conv = Conv(groups * group_channels, stride, padding, dilation, groups, pad_value)
    check_all_outputs(input, weight, conv, dtype, tiled)


# --- borders and nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_windows_that_see_only_padding(level, pad_value):
    input, weight = random_packed(2, 3, 2, 40), random_packed(20, 2, 2, 40)
    conv = Conv(40, padding=(4, 5), pad_value=pad_value)
    check_all_outputs(input, weight, conv)
    corner = ops.conv2d(input, weight, *conv)[:, 0, 0]
    ones = pad_value * reference.unpack(weight, 40).sum((1, 2, 3))
    assert torch.equal(corner, ones.int().expand(2, 20))


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (0, 3), (3, 0), (0, 0)])
def test_kernel_larger_than_the_input(level, size, pad_value):
    input, weight = random_packed(2, *size, 33), random_packed(5, 5, 4, 33)
    conv = Conv(33, padding=(3, 2), pad_value=pad_value)
    check_all_outputs(input, weight, conv)


def test_no_images(level):
    check_all_outputs(random_packed(0, 4, 5, 33), random_packed(7, 3, 3, 33), Conv(33))


@pytest.mark.parametrize("groups", [1, 2])
def test_no_output_channels(level, groups):
    input, weight = random_packed(2, 4, 5, 64), random_packed(0, 3, 3, 64 // groups)
    threshold, scale = torch.empty(0, dtype=torch.int32), torch.empty(0)
    assert ops.conv2d(input, weight, 64, groups=groups).shape == (2, 2, 3, 0)
    assert ops.conv2d_float(input, weight, 64, groups=groups, scale=scale).shape == (2, 2, 3, 0)
    bits = ops.conv2d_bits(input, weight, 64, groups=groups, threshold=threshold)
    assert bits.shape == (2, 2, 3, 0)


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_input_channels_sum_to_zero(level, groups, pad_value):
    input, weight = random_packed(2, 4, 5, 0), random_packed(6, 3, 3, 0)
    zeros = torch.zeros(2, 4, 5, 6, dtype=torch.int32)
    arguments = (0, 1, 1, 1, groups, pad_value)
    assert torch.equal(ops.conv2d(input, weight, *arguments), zeros)
    bias = torch.randn(6)
    floats = ops.conv2d_float(input, weight, *arguments, bias=bias)
    assert torch.equal(floats, zeros + bias)
    threshold = torch.tensor([-1, 0, 1, -1, 0, 1], dtype=torch.int32)
    bits = ops.conv2d_bits(input, weight, *arguments, threshold=threshold)
    assert torch.equal(bits, torch.full((2, 4, 5, 1), 0b011011, dtype=torch.int32))


# --- layouts --------------------------------------------------------------------------------------


def test_views_are_read_as_what_they_show(level):
    maps = random_packed(4, 9, 8, 70)
    weight = random_packed(3, 3, 40, 70).permute(2, 0, 1, 3)
    conv = Conv(70, padding=(1, 1))
    for input in (
        maps.permute(0, 2, 1, 3),
        maps[::2, 1:, ::3],
        maps[:1, :1].expand(3, 5, 8, 3),
        maps.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ):
        check_all_outputs(input, weight, conv)


def test_one_integer_means_both_axes(level):
    input, weight = random_packed(1, 9, 8, 40), random_packed(5, 3, 3, 40)
    expected = reference.conv2d(input, weight, 40, (2, 2), (3, 3), (2, 2))
    assert torch.equal(ops.conv2d(input, weight, 40, 2, 3, 2), expected)
    assert torch.equal(ops.conv2d(input, weight, 40, [2, 2], [3, 3], [2, 2]), expected)
