"""Inputs for the tests of the operators, and the check that every packed result must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bnn_ext import ops, reference

INT_MIN, INT_MAX = -(2**31), 2**31 - 1

# Around one, two, three and four words, and around the blocks of 16 and tiles of 64 channels.
SIZES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 200)


def random_packed(*shape: int) -> Tensor:
    """A packed tensor of random bits; `shape` counts bits, not words."""
    return reference.pack(torch.randn(shape))


def random_thresholds(channels: int, k: int) -> tuple[Tensor, Tensor]:
    """int32 `[channels]` near typical sums of `k` signs, some extreme; and random flips."""
    spread = math.isqrt(k) + 1
    threshold = torch.randint(-spread, spread + 1, (channels,), dtype=torch.int32)
    threshold[::7] = INT_MIN
    threshold[3::7] = INT_MAX
    return threshold, random_packed(channels)


def random_affine(channels: int) -> tuple[Tensor, Tensor]:
    """Scales and biases whose result tells how often it was rounded."""
    exponent = torch.randint(-12, 4, (channels,))
    scale = torch.ldexp(torch.randn(channels), exponent)
    # Near -sum * scale for typical sums, so that the addition cancels leading digits.
    bias = scale * torch.randint(-9, 10, (channels,)) * (1 + 1e-7 * torch.randn(channels))
    return scale, bias


def examples() -> dict[str, dict[str, Any]]:
    """A valid call of every operator that gives every argument."""
    threshold, flip = random_thresholds(5, 70)
    scale, bias = random_affine(5)
    weight = random_packed(5, 70)
    linear = {
        "input": random_packed(2, 70),
        "weight": weight,
        "in_features": 70,
        "tiles": ops.tile_weight(weight),
    }
    kernel = random_packed(5, 3, 2, 33)
    conv2d = {
        "input": random_packed(2, 6, 7, 165),
        "weight": kernel,
        "in_channels": 165,
        "stride": (2, 1),
        "padding": (1, 2),
        "dilation": (1, 2),
        "groups": 5,
        "pad_value": 0,
        "tiles": ops.tile_weight(kernel, 5),
    }
    to_float = {"scale": scale, "bias": bias, "dtype": torch.float16}
    to_bits = {"threshold": threshold, "flip": flip}
    real_linear = linear | {"input": torch.randn(2, 70)}
    real_conv2d = conv2d | {"input": torch.randn(2, 165, 6, 7)}
    affine = {"scale": scale, "bias": bias}
    to_real_bits = {"threshold": torch.randn(5), "flip": flip}
    return {
        "pack": {
            "input": torch.randn(2, 3, 40),
            "threshold": torch.randn(40),
            "flip": random_packed(40),
        },
        "unpack": {"packed": random_packed(2, 3, 40), "channels": 40, "dtype": torch.float32},
        "flatten": {"packed": random_packed(2, 3, 40), "channels": 40},
        "select_channels": {
            "inputs": [random_packed(2, 3, 40), random_packed(2, 3, 70)],
            "channels": [40, 70],
            "index": torch.randperm(110, dtype=torch.int32),
        },
        "tile_weight": {"weight": random_packed(6, 3, 2, 40), "groups": 2},
        "linear": linear,
        "linear_float": linear | to_float,
        "linear_bits": linear | to_bits,
        "conv2d": conv2d,
        "conv2d_float": conv2d | to_float,
        "conv2d_bits": conv2d | to_bits,
        "binary_weight_linear": real_linear | affine,
        "binary_weight_linear_bits": real_linear | to_real_bits,
        "binary_weight_conv2d": real_conv2d | affine,
        "binary_weight_conv2d_bits": real_conv2d | to_real_bits,
        "max_pool2d": {
            "input": random_packed(2, 6, 7, 70),
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 0),
            "dilation": (1, 2),
            "ceil_mode": True,
            "minimum": random_packed(70),
        },
        "max_pool2d_float": {
            "input": torch.randn(2, 6, 7, 70),
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 0),
            "dilation": (1, 2),
            "ceil_mode": True,
        },
        "avg_pool2d": {
            "input": torch.randn(2, 6, 7, 70),
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 0),
            "ceil_mode": True,
            "count_include_pad": False,
            "divisor_override": 5,
        },
        "global_avg_pool2d": {"input": torch.randn(2, 6, 7, 70)},
    }


def map_tensors(function: Callable[[Tensor], Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with `function(tensor)` for each tensor, those in lists too."""
    return tree_map_only(Tensor, function, arguments)


def assert_same_packed(actual: Tensor, expected: Tensor, channels: int) -> None:
    """Equal words, the shape for `channels` bits, tail bits 0."""
    assert actual.dtype == torch.int32
    assert actual.shape[-1] == reference.words(channels)
    assert torch.equal(actual, expected)
    if channels % 32:
        assert not (actual[..., -1] >> channels % 32).any(), "tail bits must be 0"


def assert_same_floats(actual: Tensor, expected: Tensor) -> None:
    """The same bits; two NaNs are the same, whatever their payload."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    integer = torch.int32 if actual.dtype == torch.float32 else torch.int16
    kept = ~actual.isnan()
    assert torch.equal(actual[kept].view(integer), expected[kept].view(integer))
