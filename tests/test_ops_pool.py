"""Pools of packed and of real maps against the reference and against torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import SIZES, assert_same_floats, random_packed
from torch import Tensor

from bnn_ext import ops, reference


def test_max_pool_by_hand():
    """One window over 0b01 and 0b11: the maximum is their or, the minimum (channel 1) their and."""
    input = torch.tensor([0b01, 0b11], dtype=torch.int32).view(1, 1, 2, 1)
    lowest = torch.tensor([0b10], dtype=torch.int32)
    for module in (ops, reference):
        assert module.max_pool2d(input, (1, 2)).item() == 0b11
        assert module.max_pool2d(input, (1, 2), minimum=lowest).item() == 0b01


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_number_of_channels(ceil_mode):
    for channels in SIZES:
        input = random_packed(2, 7, 6, channels)
        for minimum in (None, random_packed(channels)):
            arguments = ((3, 2), (2, 2), (1, 1), (1, 1), ceil_mode, minimum)
            expected = reference.max_pool2d(input, *arguments)
            assert torch.equal(ops.max_pool2d(input, *arguments), expected)


def test_the_maximum_is_that_of_the_float_map():
    input = random_packed(2, 7, 6, 40)
    x = reference.unpack(input, 40).permute(0, 3, 1, 2)
    expected = reference.pack(F.max_pool2d(x, 3, 2, 1).permute(0, 2, 3, 1))
    assert torch.equal(ops.max_pool2d(input, 3, 2, 1), expected)


def test_the_minimum_is_the_maximum_of_the_negated_map():
    x = torch.randn(2, 7, 6, 64)
    everything = torch.full((2,), -1, dtype=torch.int32)
    lowest = ops.max_pool2d(reference.pack(x), 2, minimum=everything)
    assert torch.equal(~lowest, ops.max_pool2d(~reference.pack(x), 2))


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Input size, kernel size, stride, padding, dilation of one axis."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (5, 4, 3))
    padding = draw(st.integers(0, kernel // 2))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return draw(st.integers(least, least + 6)), kernel, stride, padding, dilation


@settings(max_examples=400)
@given(
    images=st.integers(0, 2),
    vertical=axes(),
    horizontal=axes(),
    channels=st.sampled_from((1, 32, 33, 100)),
    ceil_mode=st.booleans(),
    minimum=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_all_parameters_crossed(images, vertical, horizontal, channels, ceil_mode, minimum, seed):
    torch.manual_seed(seed)
    size, kernel_size, stride, padding, dilation = zip(vertical, horizontal, strict=True)
    input = random_packed(images, *size, channels)
    lowest = random_packed(channels) if minimum else None
    arguments = (kernel_size, stride, padding, dilation, ceil_mode, lowest)
    expected = reference.max_pool2d(input, *arguments)
    assert torch.equal(ops.max_pool2d(input, *arguments), expected)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_small_window_along_one_axis(ceil_mode):
    for size, kernel, stride, dilation in itertools.product(range(1, 7), *[range(1, 4)] * 3):
        for padding in range(kernel // 2 + 1):
            room = stride - 1 if ceil_mode else 0  # by which a window may stick out
            if size + 2 * padding + room <= dilation * (kernel - 1):
                with pytest.raises(ValueError, match="^kernel_size"):
                    ops.max_pool2d(
                        random_packed(1, size, 2, 32),
                        (kernel, 1),
                        (stride, 1),
                        (padding, 0),
                        (dilation, 1),
                        ceil_mode,
                    )
                continue
            input = random_packed(1, size, 2, 32)
            window = ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
            expected = reference.max_pool2d(input, *window, ceil_mode)
            assert torch.equal(ops.max_pool2d(input, *window, ceil_mode), expected)
            swapped = ops.max_pool2d(
                input.transpose(1, 2), *(pair[::-1] for pair in window), ceil_mode
            )
            assert torch.equal(swapped.transpose(1, 2), expected)


def test_stride_is_the_kernel_size_unless_given():
    input = random_packed(2, 9, 8, 33)
    expected = ops.max_pool2d(input, (3, 2), (3, 2))
    assert torch.equal(ops.max_pool2d(input, (3, 2)), expected)


def test_a_dilated_window_may_miss_the_input():
    """Taps at -1 and 2 of a map of size 2: the maximum of nothing is -1, the minimum is +1."""
    input = random_packed(1, 2, 2, 32)
    lowest = random_packed(32)
    for minimum in (None, lowest):
        pooled = ops.max_pool2d(input, 2, 1, 1, 3, False, minimum)
        assert torch.equal(pooled, reference.max_pool2d(input, 2, 1, 1, 3, False, minimum))
        assert torch.equal(
            pooled.flatten(), torch.zeros_like(lowest) if minimum is None else lowest
        )


def test_views_are_read_as_what_they_show():
    maps = random_packed(4, 9, 8, 70)
    for input in (maps.permute(0, 2, 1, 3), maps[::2, 1:, ::3], maps[:1].expand(3, 9, 8, 3)):
        assert torch.equal(ops.max_pool2d(input, 2), reference.max_pool2d(input, (2, 2)))
    minimum = random_packed(3, 70)[1]
    expected = reference.max_pool2d(maps, (2, 2), minimum=minimum)
    assert torch.equal(ops.max_pool2d(maps, 2, minimum=minimum), expected)


def test_of_nothing():
    assert ops.max_pool2d(random_packed(0, 4, 4, 33), 2).shape == (0, 2, 2, 2)
    assert ops.max_pool2d(random_packed(2, 4, 4, 0), 2).shape == (2, 2, 2, 0)


# --- real maps ------------------------------------------------------------------------------------

FORMATS = (torch.contiguous_format, torch.channels_last)


def by_torch(function: Callable[..., Tensor], input: Tensor, *args: Any, memory: Any) -> Tensor:
    """What a pool of torch gives for an NHWC map in one of its memory formats."""
    x = input.permute(0, 3, 1, 2).contiguous(memory_format=memory)
    return function(x, *args).permute(0, 2, 3, 1)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """The signs of zeros and what NaNs carry are the same, too."""
    assert torch.equal(actual.view(torch.int32), expected.contiguous().view(torch.int32))


def awkward_floats(*shape: int) -> Tensor:
    """Few values, so that many are equal: zeros of both signs, infinities, different NaNs."""
    quiet = torch.tensor([0x7FC00001, 0x7FC00002, -0x3FFFFD], dtype=torch.int32)
    values = torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf])
    values = torch.cat((values, values, quiet.view(torch.float32)))
    return values[torch.randint(len(values), shape)]


@pytest.mark.parametrize("memory", FORMATS)
def test_real_pools_at_every_number_of_channels(level, memory):
    for channels in SIZES:
        input = torch.randn(2, 7, 6, channels)
        window = ((3, 2), (2, 2), (1, 1))
        for values in (input, awkward_floats(2, 7, 6, channels)):
            expected = by_torch(F.max_pool2d, values, *window, memory=memory)
            assert_same_bits(ops.max_pool2d_float(values, *window), expected)
        expected = by_torch(F.avg_pool2d, input, *window, memory=memory)
        assert_same_bits(ops.avg_pool2d(input, *window), expected)


@settings(max_examples=400)
@given(
    images=st.integers(0, 2),
    vertical=axes(),
    horizontal=axes(),
    channels=st.sampled_from((1, 5, 33, 100)),
    ceil_mode=st.booleans(),
    memory=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**16),
)
def test_max_pool_of_real_maps(images, vertical, horizontal, channels, ceil_mode, memory, seed):
    torch.manual_seed(seed)
    size, *window = zip(vertical, horizontal, strict=True)
    input = awkward_floats(images, *size, channels)
    expected = by_torch(F.max_pool2d, input, *window, ceil_mode, memory=memory)
    assert_same_bits(ops.max_pool2d_float(input, *window, ceil_mode), expected)
    assert_same_bits(reference.max_pool2d_float(input, *window, ceil_mode), expected)


@st.composite
def undilated_axes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Input size, kernel size, stride, padding of one axis."""
    kernel, stride = draw(st.integers(1, 7)), draw(st.integers(1, 8))
    padding = draw(st.integers(0, kernel // 2))
    least = max(1, kernel - 2 * padding)
    return draw(st.integers(least, least + 6)), kernel, stride, padding


@settings(max_examples=400)
@given(
    images=st.integers(0, 2),
    vertical=undilated_axes(),
    horizontal=undilated_axes(),
    channels=st.sampled_from((1, 5, 33, 100)),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
    divisor_override=st.sampled_from((None, None, 1, 7, 2**24 + 1)),
    memory=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**16),
)
def test_average_pool(
    images,
    vertical,
    horizontal,
    channels,
    ceil_mode,
    count_include_pad,
    divisor_override,
    memory,
    seed,
):
    """Of normal numbers, of which no average is -0.0."""
    torch.manual_seed(seed)
    size, *window = zip(vertical, horizontal, strict=True)
    input = torch.randn(images, *size, channels)
    arguments = (*window, ceil_mode, count_include_pad, divisor_override)
    expected = by_torch(F.avg_pool2d, input, *arguments, memory=memory)
    assert_same_bits(ops.avg_pool2d(input, *arguments), expected)
    assert_same_bits(reference.avg_pool2d(input, *arguments), expected)


@pytest.mark.parametrize(
    "shape", [(2, 7, 7, 64), (3, 1, 1, 33), (1, 9, 2, 5), (0, 3, 3, 8)], ids=str
)
def test_averages_of_whole_maps(shape):
    input = torch.randn(shape)
    for view in (input, input.transpose(1, 2), input[:, :, :, ::2]):
        expected = ops.avg_pool2d(view, view.shape[1:3])
        assert_same_bits(ops.global_avg_pool2d(view), expected)
        assert_same_bits(reference.global_avg_pool2d(view), expected)


def test_an_average_that_underflows_keeps_its_sign_as_in_channels_last():
    input = torch.full((1, 1, 2, 33), -1e-45)
    found = ops.avg_pool2d(input, (1, 2), divisor_override=9)
    arguments = ((1, 2), None, 0, False, True, 9)
    contiguous, last = (by_torch(F.avg_pool2d, input, *arguments, memory=m) for m in FORMATS)
    assert_same_bits(found, last)
    assert found.signbit().all() and not contiguous.signbit().any()
    assert torch.equal(found, contiguous)  # 0.0 == -0.0


def test_averages_of_what_is_not_finite():
    input = awkward_floats(2, 9, 8, 33)
    assert_same_floats(ops.avg_pool2d(input, 3, 2, 1), reference.avg_pool2d(input, 3, 2, 1))


def test_real_windows_of_padding_alone():
    """The maximum of nothing is -infinity, the average of padding 0."""
    ones = torch.ones(1, 2, 2, 33)
    pooled = ops.max_pool2d_float(ones, 2, 1, 1, 3)
    assert torch.equal(pooled, torch.full_like(pooled, -torch.inf))
    arguments = (3, 3, 1, True, False)  # the last window starts in the right padding
    assert_same_bits(
        ops.avg_pool2d(torch.ones(1, 5, 5, 33), *arguments),
        reference.avg_pool2d(torch.ones(1, 5, 5, 33), *arguments),
    )


def test_real_maps_of_any_strides():
    maps = torch.randn(4, 9, 8, 70)
    views = (maps.permute(0, 2, 1, 3), maps[::2, 1:, ::3], maps[:1].expand(3, 9, 8, 70))
    for input in (*views, maps[..., ::2], maps.permute(0, 3, 1, 2)):
        for name in ("max_pool2d_float", "avg_pool2d"):
            expected = getattr(reference, name)(input, (2, 2))
            assert_same_bits(getattr(ops, name)(input, 2), expected)


def test_real_maps_of_nothing():
    for pool in (ops.max_pool2d_float, ops.avg_pool2d):
        assert pool(torch.ones(0, 4, 4, 33), 2).shape == (0, 2, 2, 33)
        assert pool(torch.ones(2, 4, 4, 0), 2).shape == (2, 2, 2, 0)
