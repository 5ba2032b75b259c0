"""Packed linear layers against the reference, at every CPU level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import (
    INT_MAX,
    INT_MIN,
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


def check_all_outputs(input: Tensor, weight: Tensor, k: int, tiles: Tensor | None = None) -> None:
    out = weight.shape[0]
    sums = reference.linear(input, weight, k)
    assert torch.equal(ops.linear(input, weight, k, tiles=tiles), sums)

    threshold, flip = random_thresholds(out, k)
    for f in (None, flip):
        expected = reference.linear_bits(input, weight, k, threshold, f)
        bits = ops.linear_bits(input, weight, k, threshold, f, tiles=tiles)
        assert_same_packed(bits, expected, out)

    scale, bias = random_affine(out)
    for dtype in FLOATS:
        expected = reference.linear_float(input, weight, k, scale, bias, dtype)
        floats = ops.linear_float(input, weight, k, scale, bias, dtype, tiles=tiles)
        assert_same_floats(floats, expected)


def test_sum_of_products_by_hand(level):
    """(+1 -1 +1) . (+1 +1 -1) = -1 and (+1 -1 +1) . (+1 -1 +1) = 3."""
    x = torch.tensor([[0b101]], dtype=torch.int32)
    weight = torch.tensor([[0b011], [0b101]], dtype=torch.int32)
    assert ops.linear(x, weight, 3).tolist() == [[-1, 3]]
    assert reference.linear(x, weight, 3).tolist() == [[-1, 3]]


@pytest.mark.parametrize("k", SIZES)
def test_every_number_of_features(level, k):
    check_all_outputs(random_packed(5, k), random_packed(33, k), k)


@pytest.mark.parametrize("out", SIZES)
def test_every_number_of_outputs(level, out):
    weight = random_packed(out, 65)
    check_all_outputs(random_packed(7, 65), weight, 65, ops.tile_weight(weight))


# Up to the register tile of 6 rows and past it, and around the 48 rows of a task.
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 47, 48, 49, 96, 97, 150])
def test_every_number_of_rows(level, rows):
    check_all_outputs(random_packed(rows, 100), random_packed(70, 100), 100)


# Past the longest rows whose products are looked up; 48 outputs behind the first 64 are enough to.
@pytest.mark.parametrize("words", range(1, 27))
def test_short_rows_of_any_agreement(level, words):
    k = 32 * words - 3
    signs, weights = torch.randn(11, k), torch.randn(112, k)
    signs[3], signs[7] = weights[1], -weights[100]
    input, weight = reference.pack(signs), reference.pack(weights)
    check_all_outputs(input, weight, k)
    sums = ops.linear(input, weight, k)
    assert (sums[3, 1], sums[7, 100]) == (k, -k)


@settings(max_examples=40)
@given(
    batch=st.lists(st.integers(0, 4), max_size=3),
    k=st.integers(0, 300),
    out=st.integers(0, 150),
    tiled=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(level, batch, k, out, tiled, seed):
    torch.manual_seed(seed)
    weight = random_packed(out, k)
    tiles = ops.tile_weight(weight) if tiled else None
    check_all_outputs(random_packed(*batch, k), weight, k, tiles)


@pytest.mark.parametrize("shape", [(0, 65), (2, 0, 65), (3, 0), (0, 0)])
@pytest.mark.parametrize("out", [0, 5])
def test_of_nothing(level, shape, out):
    k = shape[-1]
    input, weight = random_packed(*shape), random_packed(out, k)
    check_all_outputs(input, weight, k)
    assert torch.equal(
        ops.linear(input, weight, k), torch.zeros(*shape[:-1], out, dtype=torch.int32)
    )


def test_views_are_read_as_what_they_show(level):
    wide, tall = random_packed(6, 4, 200), random_packed(70, 2, 200)
    weight = tall[:, 1]  # rows that lie apart
    tiles = ops.tile_weight(weight)
    threshold = torch.arange(-70, 70, dtype=torch.int32)[::2]
    scale = torch.randn(2, 70)[0]
    flip = random_packed(3, 70)[1]
    strided_tiles = torch.stack((tiles, tiles), 1)[:, 0]
    for input in (wide.transpose(0, 1), wide[::2, 1:], wide[0, 0].expand(5, 7)):
        expected = reference.linear(input, weight, 200)
        assert torch.equal(ops.linear(input, weight, 200), expected)
        assert torch.equal(ops.linear(input, weight, 200, tiles=strided_tiles), expected)
        assert_same_packed(
            ops.linear_bits(input, weight, 200, threshold, flip),
            reference.linear_bits(input, weight, 200, threshold, flip),
            70,
        )
        assert_same_floats(
            ops.linear_float(input, weight, 200, scale, scale),
            reference.linear_float(input, weight, 200, scale, scale),
        )


# --- long sums ------------------------------------------------------------------------------------


# Counts are kept in bytes for up to 31 words: one word less and more, and far beyond.
@pytest.mark.parametrize("words", [30, 31, 32, 61, 62, 63, 93, 94, 2188])
def test_largest_and_smallest_sums_do_not_overflow(level, words):
    k = 32 * words - 16  # 70,000 at most
    ones, minus_ones = torch.ones(3, k), -torch.ones(20, k)
    plus, minus = reference.pack(ones), reference.pack(minus_ones)
    assert ops.linear(plus, minus, k).unique().tolist() == [-k]
    assert ops.linear(plus, plus, k).unique().tolist() == [k]
    assert ops.linear(minus, minus, k).unique().tolist() == [k]


def test_long_random_sums(level):
    check_all_outputs(random_packed(7, 70_000), random_packed(40, 70_000), 70_000)


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_product_and_sum_are_rounded_one_after_the_other(level, dtype):
    """Scales and biases for which fusing the two operations, or skipping one, gives other bits."""
    k, out = 1001, 256
    input, weight = random_packed(8, k), random_packed(out, k)
    sums = reference.linear(input, weight, k)
    scale = torch.rand(out) + 0.1
    bias = -(sums[0] * scale) * (1 + 2**-20 * torch.randn(out))
    fused = torch.addcmul(bias.double(), sums.double(), scale.double()).float()
    separate = reference.linear_float(input, weight, k, scale, bias)
    assert not torch.equal(fused, separate)  # the inputs tell the two apart
    for s in (None, scale):
        for b in (None, bias):
            expected = reference.linear_float(input, weight, k, s, b, dtype)
            assert_same_floats(ops.linear_float(input, weight, k, s, b, dtype), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_results_at_the_edges_of_a_float_format(level, dtype):
    """Halfway cases, overflow to infinity, subnormals, zeros of both signs, infinities and NaN."""
    info = torch.finfo(dtype)
    eps, tiny, largest = info.eps, info.smallest_normal, info.max
    scale = torch.tensor(
        [1 + eps / 2, 1 + 3 * eps / 2, 1 + eps / 2 + 2**-23, largest, tiny / 7, tiny * eps / 2]
        + [tiny * eps, 0.0, -0.0, torch.inf, torch.nan, 2**-149, 2**-126, 1.0, 2.0**-23]
    )
    bias = torch.tensor([0.0, -0.0, tiny, largest / 2, -torch.inf, torch.nan, 1.0])
    scale, bias = torch.cartesian_prod(scale, bias).T.contiguous()
    k = 33
    input, weight = random_packed(6, k), random_packed(len(scale), k)
    expected = reference.linear_float(input, weight, k, scale, bias, dtype)
    assert_same_floats(ops.linear_float(input, weight, k, scale, bias, dtype), expected)


# --- thresholds -----------------------------------------------------------------------------------


def test_threshold_on_below_and_above_every_sum(level):
    k = 5
    input = reference.pack(torch.tensor([[1.0] * n + [-1.0] * (k - n) for n in range(k + 1)]))
    edges = [INT_MIN, INT_MIN + 1, *range(-k - 1, k + 2), INT_MAX - 1, INT_MAX]
    threshold = torch.tensor(edges * 4, dtype=torch.int32)
    weight = reference.pack(torch.ones(len(threshold), k))
    for flip in (None, torch.ones(len(threshold)), -torch.ones(len(threshold))):
        flip = None if flip is None else reference.pack(flip)
        bits = ops.linear_bits(input, weight, k, threshold, flip)
        expected = reference.linear_bits(input, weight, k, threshold, flip)
        assert_same_packed(bits, expected, len(threshold))
    above = ops.linear_bits(input, weight, k, torch.full_like(threshold, INT_MIN))
    assert torch.equal(ops.unpack(above, len(threshold)), torch.ones(k + 1, len(threshold)))
