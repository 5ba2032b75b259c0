"""Selected channels of packed maps against the reference, at every CPU level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import SIZES, assert_same_packed, random_packed
from torch import Tensor

from bnn_ext import ops, reference


def check(inputs: list[Tensor], channels: list[int], index: Tensor) -> None:
    index = index.int()
    expected = reference.select_channels(inputs, channels, index)
    assert_same_packed(ops.select_channels(inputs, channels, index), expected, len(index))


def test_by_hand():
    """Channels 0 and 1 of the first input, 2 and 3 of the second."""
    inputs = [torch.tensor([0b01], dtype=torch.int32), torch.tensor([0b10], dtype=torch.int32)]
    index = torch.tensor([3, 2, 0, 3], dtype=torch.int32)
    for module in (ops, reference):
        assert module.select_channels(inputs, [2, 2], index).item() == 0b1101


def test_channels_are_those_of_the_float_maps(level):
    x, y = torch.randn(2, 40, 5, 6), torch.randn(2, 70, 5, 6)
    index = torch.randperm(110)
    expected = reference.pack(torch.cat((x, y), 1)[:, index].permute(0, 2, 3, 1))
    inputs = [reference.pack(part.permute(0, 2, 3, 1)) for part in (x, y)]
    assert torch.equal(ops.select_channels(inputs, [40, 70], index.int()), expected)


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", SIZES)
def test_concatenation(first, second):
    channels = [first, second, 33]
    inputs = [random_packed(3, 13, count) for count in channels]
    check(inputs, channels, torch.arange(sum(channels)))


@pytest.mark.parametrize("channels", SIZES)
def test_every_slice_start(channels):
    input = random_packed(33, channels)
    for first in range(channels):
        check([input], [channels], torch.arange(first, channels))


@pytest.mark.parametrize("groups", [2, 3, 4, 32])
@pytest.mark.parametrize("group_channels", [1, 8, 31, 32, 48])
def test_channel_shuffle(level, groups, group_channels):
    channels = groups * group_channels
    index = torch.arange(channels).view(groups, group_channels).T.flatten()
    check([random_packed(5, 7, channels)], [channels], index)


@settings(max_examples=300)
@given(
    positions=st.integers(0, 70),
    channels=st.lists(st.sampled_from((0, 1, 31, 32, 33, 64, 100, 200)), min_size=1, max_size=4),
    runs=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 140), st.sampled_from((-1, 1, 1, 3)))),
    seed=st.integers(0, 2**16),
)
def test_any_runs(level, positions, channels, runs, seed):
    """Runs upwards, downwards and with gaps that start anywhere and may repeat channels."""
    torch.manual_seed(seed)
    inputs = [random_packed(positions, count) for count in channels]
    parts = [torch.arange(0)]
    for start, length, step in runs:
        part = int(start * sum(channels)) + step * torch.arange(length)
        parts.append(part[(part >= 0) & (part < sum(channels))])
    check(inputs, channels, torch.cat(parts))


def test_inputs_may_be_views():
    x = random_packed(6, 5, 70)
    index = torch.randperm(140)
    check([x.transpose(0, 1)[:, ::2], random_packed(5, 3, 70)], [70, 70], index)
    check([x[:1].expand(4, 5, 3), random_packed(4, 5, 70)], [70, 70], index)
    strided = torch.randperm(140, dtype=torch.int32)[::3]
    assert not strided.is_contiguous()
    check([x, x], [70, 70], strided)


def test_values_of_the_index_are_checked_without_positions_too():
    index = torch.tensor([40], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"index must be in 0\.\.39, found 40"):
        ops.select_channels([random_packed(0, 40)], [40], index)
