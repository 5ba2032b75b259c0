"""pack, unpack, flatten and tile_weight against the reference, at every CPU level."""

from __future__ import annotations

import ctypes
import itertools
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import INT_MAX, INT_MIN, SIZES, assert_same_packed, random_packed
from torch import Tensor

from bnn_ext import ops, reference
from bnn_ext.ops import packing

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PACKABLE = (*FLOATS, torch.int32)
UNPACKED = (*PACKABLE, torch.int8)
ALL_ONES = -1  # a word with every bit set


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few distinct values, so that many lie exactly on a threshold drawn the same way."""
    return torch.randint(-3, 4, shape).to(dtype)


def at_the_end_of_a_page(tensor: Tensor) -> Tensor:
    """A copy, followed by a page of memory that may not be accessed."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + mmap.PAGESIZE
    no_access = 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, no_access) == 0
    offset = mmap.PAGESIZE - tensor.numel() * tensor.element_size()
    copy = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor)


def special_values(dtype: torch.dtype) -> Tensor:
    if dtype == torch.int32:
        return torch.tensor([INT_MIN, INT_MIN + 1, -1, 0, 1, INT_MAX - 1, INT_MAX], dtype=dtype)
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    positive = [0.0, subnormal, info.smallest_normal, 1.0, info.max, torch.inf]
    return torch.tensor([*positive, *(-x for x in positive), torch.nan], dtype=dtype)


# --- the bit convention, word by word -------------------------------------------------------------


def test_first_value_is_the_lowest_bit_and_plus_one_is_a_set_bit(level):
    x = torch.tensor([[1.0, -1.0, -1.0, 1.0] + 27 * [-1.0] + [1.0, 1.0]])
    expected = torch.tensor([[INT_MIN + 0b1001, 1]], dtype=torch.int32)
    assert torch.equal(ops.pack(x), expected)
    assert torch.equal(reference.pack(x), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sign_of_zeros_nan_infinities_and_subnormals(level, dtype):
    x = special_values(dtype)
    expected = torch.tensor([0b0_000001_111111], dtype=torch.int32)  # of the negatives only -0.0
    assert torch.equal(ops.pack(x), expected)
    assert torch.equal(ops.pack(x.repeat(3)), reference.pack(x.repeat(3)))  # past one vector


# --- pack -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PACKABLE)
def test_pack_equals_reference_for_every_size(level, dtype):
    for channels in SIZES:
        x = values(3, channels, dtype=dtype)
        threshold = values(channels, dtype=torch.int32 if dtype == torch.int32 else torch.float32)
        flip = random_packed(channels)
        assert_same_packed(ops.pack(x), reference.pack(x), channels)
        for f in (None, flip):
            expected = reference.pack(x, threshold, f)
            assert_same_packed(ops.pack(x, threshold, f), expected, channels)


@pytest.mark.parametrize("dtype", PACKABLE)
def test_thresholds_compare_every_pair_of_special_values(level, dtype):
    x = special_values(dtype)
    thresholds = x if dtype == torch.int32 else special_values(torch.float32)
    x = x.unsqueeze(1).repeat(1, 5 * len(thresholds))
    threshold = thresholds.repeat(5)  # some pairs in whole words, some in the last one
    for flip in (None, torch.zeros(len(threshold)) - 1, torch.ones(len(threshold))):
        flip = None if flip is None else reference.pack(flip)
        expected = reference.pack(x, threshold, flip)
        assert_same_packed(ops.pack(x, threshold, flip), expected, len(threshold))


@pytest.mark.parametrize("dtype", PACKABLE)
def test_special_values_in_neighbouring_pixels(level, dtype):
    """As above where channels lie apart: whole vectors of pixels, and the last few."""
    x = special_values(dtype)
    thresholds = x if dtype == torch.int32 else special_values(torch.float32)
    channels = len(thresholds)
    x = x.repeat(3).expand(channels, -1).contiguous().t()
    assert_same_packed(ops.pack(x), reference.pack(x), channels)
    for flip in (None, torch.zeros(channels) - 1, torch.ones(channels), torch.randn(channels)):
        flip = None if flip is None else reference.pack(flip)
        expected = reference.pack(x, thresholds, flip)
        assert_same_packed(ops.pack(x, thresholds, flip), expected, channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_is_the_float_that_it_means(level, dtype):
    """All 65536 values against themselves, and against the floats next to them."""
    downwards = torch.full((128,), ALL_ONES, dtype=torch.int32)
    for bits in torch.arange(-(2**15), 2**15).to(torch.int16).view(16, 4096):
        x = bits.view(dtype)
        columns = x.expand(17, -1).t().contiguous().t()  # channels apart
        assert torch.equal(ops.pack(x), reference.pack(x))
        assert torch.equal(ops.pack(columns), reference.pack(x).expand(17, -1))
        above, below = (x.float().nextafter(torch.tensor(s * torch.inf)) for s in (1, -1))
        for threshold in (x.float(), above, below):
            for flip in (None, downwards):
                expected = reference.pack(x, threshold, flip)
                assert torch.equal(ops.pack(x, threshold, flip), expected)
                assert torch.equal(ops.pack(columns, threshold, flip), expected.expand(17, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_meet_an_unrounded_threshold(level, dtype):
    x = torch.ones(40, dtype=dtype)
    above = torch.full((40,), 1.0).nextafter(torch.tensor(2.0))
    assert torch.equal(ops.pack(x, above), torch.zeros(2, dtype=torch.int32))
    assert torch.equal(ops.pack(x, torch.ones(40)), reference.pack(x))


def test_flip_bits_past_the_channels_leave_no_tail_bits(level):
    x, threshold = values(2, 40), values(40)
    flip = torch.full((2,), ALL_ONES, dtype=torch.int32)
    assert_same_packed(ops.pack(x, threshold, flip), reference.pack(x, threshold, flip), 40)


# Views `[..., C]` of other memory layouts, with and without a rest of pixels past one block of 64.
LAYOUTS = {
    "vector": lambda c, t: values(c, dtype=t),
    "map": lambda c, t: values(2, 7, 7, c, dtype=t),
    "nchw": lambda c, t: values(2, c, 9, 9, dtype=t).permute(0, 2, 3, 1),
    "channels_last": lambda c, t: (
        values(2, c, 5, 9, dtype=t).to(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    ),
    "nchw_one_image": lambda c, t: values(1, c, 5, 9, dtype=t).permute(0, 2, 3, 1),
    "ncdhw": lambda c, t: values(2, c, 3, 5, 4, dtype=t).permute(0, 2, 3, 4, 1),
    "swapped_outer": lambda c, t: values(2, 3, 5, 4, c, dtype=t).permute(2, 0, 3, 1, 4),
    "transposed": lambda c, t: values(c, 37, dtype=t).t(),
    "every_second_channel": lambda c, t: values(3, 5, 2 * c, dtype=t)[..., ::2],
    "some_channels": lambda c, t: values(3, 5, c + 9, dtype=t)[..., 4 : 4 + c],
    "cropped": lambda c, t: values(3, 9, 9, c, dtype=t)[1:, 2:-2, 1:6],
    "every_second_row": lambda c, t: values(4, 9, 9, c, dtype=t)[::2, ::2, ::3],
    "expanded_rows": lambda c, t: values(1, 3, 1, c, dtype=t).expand(4, 3, 5, c),
    "expanded_channels": lambda c, t: values(3, 5, 1, dtype=t).expand(3, 5, c),
    "scalar_everywhere": lambda c, t: values(1, dtype=t).expand(3, 5, c),
}


@pytest.mark.parametrize("dtype", PACKABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pack_reads_any_strides(level, layout, dtype):
    for channels in (1, 31, 33, 64):
        x = LAYOUTS[layout](channels, dtype)
        threshold = values(channels, dtype=torch.int32 if dtype == torch.int32 else torch.float32)
        flip = random_packed(channels)
        assert_same_packed(ops.pack(x), reference.pack(x), channels)
        expected = reference.pack(x, threshold, flip)
        assert_same_packed(ops.pack(x, threshold, flip), expected, channels)


@pytest.mark.parametrize("dtype", PACKABLE)
def test_every_number_of_neighbouring_pixels(level, dtype):
    threshold = values(40, dtype=torch.int32 if dtype == torch.int32 else torch.float32)
    flip = random_packed(40)
    for pixels in (*range(1, 36), 48, 63, 64, 65, 95, 128, 129, 1023, 1024, 1025, 2100):
        x = values(2, 40, pixels, dtype=dtype).transpose(1, 2)
        assert_same_packed(ops.pack(x), reference.pack(x), 40)
        expected = reference.pack(x, threshold, flip)
        assert_same_packed(ops.pack(x, threshold, flip), expected, 40)


@pytest.mark.parametrize("dtype", PACKABLE)
def test_nothing_past_the_end_is_read(level, dtype):
    """The last value lies at the end of a page, and the page after it must not be touched."""
    for channels, pixels in itertools.product(
        (1, 3, 8, 15, 16, 17, 31, 33, 40, 48), (1, 2, 15, 17)
    ):
        x = at_the_end_of_a_page(values(pixels, channels, dtype=dtype))
        threshold = values(channels, dtype=torch.int32 if dtype == torch.int32 else torch.float32)
        for bound in (
            (None, None),
            (at_the_end_of_a_page(threshold), at_the_end_of_a_page(random_packed(channels))),
        ):
            assert_same_packed(ops.pack(x, *bound), reference.pack(x, *bound), channels)
            columns = x.view(channels, pixels).t()
            expected = reference.pack(columns, *bound)
            assert_same_packed(ops.pack(columns, *bound), expected, channels)


@settings(max_examples=200)
@given(st.data())
def test_pack_of_any_view(data):
    """Random permutations, slices and expansions of up to five dimensions."""
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    rank = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.sampled_from((1, 2, 3, 33)), min_size=rank, max_size=rank))
    x = values(*(min(size, 4) for size in sizes[:-1]), sizes[-1])
    x = x.permute(data.draw(st.permutations(range(rank))))
    for axis in range(rank):
        kind = data.draw(st.sampled_from(("all", "step", "skip", "expand")))
        if kind == "step":
            x = x[(slice(None),) * axis + (slice(None, None, 2),)]
        elif kind == "skip":
            x = x[(slice(None),) * axis + (slice(1, None),)]
        elif kind == "expand" and x.shape[axis] == 1:
            x = x.expand(*(3 if i == axis else -1 for i in range(rank)))
    assert_same_packed(ops.pack(x), reference.pack(x), x.shape[-1])


def test_pack_of_a_lazily_negated_view(level):
    x = torch.randn(3, 40, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert torch.equal(ops.pack(x), reference.pack(x))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 33), (2, 0, 33), (0, 0), (2, 0, 0)])
@pytest.mark.parametrize("dtype", PACKABLE)
def test_pack_of_nothing(level, shape, dtype):
    x = torch.empty(shape, dtype=dtype)
    assert_same_packed(ops.pack(x), reference.pack(x), shape[-1])


def test_pack_by_two_threads(two_threads):
    for shape in ((9, 70, 75, 33), (1, 40, 30, 700)):
        x = torch.randn(shape)
        for view in (x, x.permute(0, 2, 3, 1)):
            assert torch.equal(ops.pack(view), reference.pack(view))
            packed = ops.pack(view)
            assert torch.equal(ops.unpack(packed, view.shape[-1]), reference.sign(view))


# --- unpack ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", UNPACKED)
def test_unpack_equals_reference_and_inverts_pack(level, dtype):
    for channels in SIZES:
        packed = random_packed(2, 3, channels)
        x = ops.unpack(packed, channels, dtype)
        assert x.dtype == dtype
        assert torch.equal(x, reference.unpack(packed, channels, dtype))
        if dtype in PACKABLE:
            assert torch.equal(ops.pack(x), packed)


def test_unpack_of_views_and_of_nothing(level):
    packed = random_packed(4, 5, 70)
    for view in (packed.transpose(0, 1), packed[::2], packed[0].expand(3, 5, 3), packed[:, 1:, :]):
        assert torch.equal(ops.unpack(view, 70), reference.unpack(view, 70))
    for shape in ((0, 33), (2, 0, 33), (3, 0)):
        packed = random_packed(*shape)
        assert torch.equal(ops.unpack(packed, shape[-1]), torch.empty(shape))


# --- flatten --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [(1,), (7,), (2, 3), (5, 1, 2)])
def test_flatten_equals_reference_for_every_size(level, pixels):
    for channels in SIZES:
        features = torch.Size(pixels).numel() * channels
        packed = random_packed(3, *pixels, channels)
        flat = ops.flatten(packed, channels)
        assert_same_packed(flat, reference.flatten(packed, channels), features)
        expected = ops.pack(ops.unpack(packed, channels).flatten(1))
        assert torch.equal(flat, expected)


@pytest.mark.parametrize(
    "shape", [(0, 2, 33), (2, 0, 33), (2, 3, 0), (2, 33), (2, 64), (0, 32), (2, 0, 64)]
)
def test_flatten_of_little(level, shape):
    packed = random_packed(*shape)
    expected = reference.flatten(packed, shape[-1])
    assert_same_packed(ops.flatten(packed, shape[-1]), expected, torch.Size(shape[1:]).numel())


def test_flatten_of_a_view(level):
    packed = random_packed(4, 3, 5, 33)
    for view in (packed.permute(1, 0, 2, 3), packed[:, :, ::2], packed[:1].expand(3, 3, 5, 2)):
        assert torch.equal(ops.flatten(view, 33), reference.flatten(view, 33))


@pytest.mark.parametrize("channels", [1, 31, 33, 63])
def test_flatten_drops_tail_bits_that_should_not_be_there(level, channels):
    """Foreign data with its tail bits set must neither leak into neighbours nor past the end."""
    packed = torch.full((2, 3, reference.words(channels)), ALL_ONES, dtype=torch.int32)
    expected = reference.flatten(packed, channels)
    assert_same_packed(ops.flatten(packed, channels), expected, 3 * channels)


# --- tile_weight ----------------------------------------------------------------------------------


def tiles_by_loops(weight: Tensor, groups: int) -> Tensor:
    rows = weight.flatten(1).unflatten(0, (groups, -1))  # [groups, out, k]
    blocks = -(-rows.shape[1] // 16)
    tiles = torch.zeros(groups * blocks, rows.shape[2], 16, dtype=torch.int32)
    for group in range(groups):
        for channel in range(rows.shape[1]):
            block = group * blocks + channel // 16
            tiles[block, :, channel % 16] = rows[group, channel]
    return tiles


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_tile_weight_puts_16_channels_side_by_side(groups):
    for out in (1, 15, 16, 17, 33):
        for shape in ((groups * out, 70), (groups * out, 3, 2, 70)):
            weight = random_packed(*shape)
            assert torch.equal(ops.tile_weight(weight, groups), tiles_by_loops(weight, groups))


def test_tile_weight_of_a_view_and_of_nothing():
    weight = random_packed(3, 5, 20, 70).permute(2, 0, 1, 3)
    assert torch.equal(ops.tile_weight(weight), tiles_by_loops(weight, 1))
    assert ops.tile_weight(random_packed(0, 70)).shape == (0, 3, 16)
    assert ops.tile_weight(random_packed(5, 0)).shape == (1, 0, 16)
    assert ops.tile_weight(random_packed(5, 0, 3, 70)).shape == (1, 0, 16)


def test_tiles_of_cuda_are_popcounts_per_tap():
    """Their shape, which meta tensors may have that stand for those of any device."""
    weight = random_packed(6, 3, 2, 70).to("meta")
    assert packing.tiles_shape(weight, 2, "cuda") == (3, 2, 6)
    assert packing.tiles_shape(weight[:, 0, 0], 1, "cuda") == (1, 1, 6)
    for device_type in ("cpu", "cuda"):
        tiles = torch.empty(
            packing.tiles_shape(weight, 2, device_type), dtype=torch.int32, device="meta"
        )
        packing.check_tiles(tiles, weight, 2)
    with pytest.raises(ValueError, match="tiles must be tile_weight"):
        packing.check_tiles(tiles[:1], weight, 2)
