"""Thresholds against the chains they replace: every integer, and floats of every size."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bnn_ext import reference
from bnn_ext.convert.capture import capture
from bnn_ext.convert.chain import direction
from bnn_ext.convert.thresholds import (
    NotMonotoneError,
    Threshold,
    float_threshold,
    integer_threshold,
)
from bnn_ext.nn.binary import scale_and_bias

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = 40
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def drawn_from(draw: random.Random, *choices: float) -> Tensor:
    return torch.tensor([draw.choice(choices) for _ in range(CHANNELS)])


class RandomChain(nn.Module):
    """Scale, bias and up to four monotone modules, with every kind of odd parameter.

    Args:
        seed: of everything.
        largest: the values of interest lie in -largest..largest.
        extreme: whether parameters may be huge, infinite or NaN.
    """

    def __init__(self, seed: int, largest: int, extreme: bool) -> None:
        super().__init__()
        draw = self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.extreme = extreme
        self.spread = largest / draw.choice((1, 3, 10))
        self.scale = draw.choice((None, torch.rand(CHANNELS) * 0.1, torch.rand(CHANNELS)))
        self.bias = draw.choice((None, torch.randn(CHANNELS) * self.spread / 3))
        if extreme and self.bias is not None and draw.random() < 0.5:
            self.bias += drawn_from(draw, 0, 0, 1e30, -1e30, 3e38)
        makers = (self.batch_norm, self.batch_norm, self.activation)
        self.modules_in_order = nn.Sequential(
            *(draw.choice(makers)() for _ in range(draw.randint(0, 4)))
        ).eval()

    @torch.no_grad()
    def batch_norm(self) -> nn.Module:
        draw = self.draw
        norm = nn.BatchNorm2d(CHANNELS, eps=draw.choice((1e-5, 1e-3, 1.0)))
        unit = 1.0 if self.scale is None else float(self.scale.mean())
        # Means on integers, with no bias: the sums there give 0 or rounding errors around it.
        norm.running_mean.copy_(torch.randn(CHANNELS) * self.spread).round_()
        norm.running_mean *= draw.choice((1.0, unit))
        norm.running_var.copy_(torch.rand(CHANNELS) * self.spread**2)
        norm.weight.copy_(torch.randn(CHANNELS) * drawn_from(draw, 1, 1, 1, 0, -0.0, 1e-38, 1e-45))
        norm.bias.copy_(torch.randn(CHANNELS) * drawn_from(draw, 0, 1, 1e-7, 10))
        norm.running_var *= drawn_from(draw, 1, 1, 1, 0, 1e-12)
        if self.extreme:
            inf, nan = float("inf"), float("nan")
            norm.eps = draw.choice((norm.eps, 0.0))
            for parameter, odd in (
                (norm.weight, (1e20, -1e38, inf, nan)),
                (norm.bias, (1e30, -1e38, inf, -inf, nan)),
                (norm.running_mean, (1e38, -inf, nan)),
                (norm.running_var, (1e38, inf, -1e3, nan)),
            ):
                if draw.random() < 0.25:
                    parameter[draw.randrange(CHANNELS)] = draw.choice(odd)
        return norm

    @torch.no_grad()
    def activation(self) -> nn.Module:
        low = self.draw.uniform(-self.spread, self.spread)
        slopes = nn.PReLU(self.draw.choice((1, CHANNELS)))
        slopes.weight.copy_(torch.rand_like(slopes.weight) * self.draw.choice((0.0, 1.0, 3.0)))
        return self.draw.choice(
            (
                nn.Hardtanh(),
                nn.Hardtanh(-1e-3, 1e-3, inplace=True),
                nn.Hardtanh(low, low + 1),
                nn.ReLU(),
                nn.ReLU6(inplace=True),
                nn.LeakyReLU(self.draw.choice((0.0, 0.01, 2.0))),
                slopes,
                nn.Dropout(),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` of any layout."""
        x = scale_and_bias(x, self.scale, self.bias, spatial_dims=2)
        return self.modules_in_order(x)

    def on_channels(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`[C]` of any dtype to `[C]` of `dtype`."""
        return self(values.to(dtype).view(1, -1, 1, 1)).flatten()


def compare(values: Tensor, threshold: Threshold) -> Tensor:
    """What the packed operators compute; `[..., C]`."""
    flip = None if threshold.rising.all() else reference.pack_bits(~threshold.rising)
    return reference.compare(values, threshold.threshold, flip)


@torch.no_grad()
def bits_of_chain(chain: nn.Module, values: Tensor) -> Tensor:
    """`[N, C]` to bits, as maps in three layouts that all must agree."""
    column = chain(values.clone()[:, :, None, None]).flatten(1) >= 0
    one_map = chain(values.t().clone()[None, :, :, None]).squeeze().t() >= 0
    nhwc = values.clone()[None, :, None].permute(0, 3, 1, 2)  # channels_last
    assert torch.equal(column, one_map.view_as(column))
    assert torch.equal(column, chain(nhwc).permute(0, 2, 3, 1).reshape(values.shape) >= 0)
    return column


# --- integers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 2, 9, 576, 4000])
@pytest.mark.parametrize("seed", range(30))
def test_every_integer(seed, largest):
    chain = RandomChain(seed, largest, extreme=False)
    threshold = integer_threshold(chain.on_channels, largest, CHANNELS)
    sums = torch.arange(-largest, largest + 1, dtype=torch.int32)[:, None].expand(-1, CHANNELS)
    assert threshold.threshold.dtype == torch.int32
    assert threshold.rising.dtype == torch.bool
    assert torch.equal(compare(sums, threshold), bits_of_chain(chain, sums.float()))


def test_every_integer_for_extreme_parameters():
    """Infinite, NaN and huge parameters: an exact threshold or a refusal, never wrong bits."""
    refused = 0
    for seed in range(300):
        chain = RandomChain(seed, 99, extreme=True)
        try:
            threshold = integer_threshold(chain.on_channels, 99, CHANNELS)
        except NotMonotoneError as error:
            assert "NaN can occur in channel" in str(error)
            refused += 1
            continue
        sums = torch.arange(-99, 100, dtype=torch.int32)[:, None].expand(-1, CHANNELS)
        assert torch.equal(compare(sums, threshold), bits_of_chain(chain, sums.float())), seed
    assert 30 < refused < 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_integer_in_other_dtypes(dtype):
    """Sums round to the dtype before the chain, some of them to the same number."""
    for seed in range(30):
        chain = RandomChain(seed, 3000, extreme=False).to(dtype)

        try:
            threshold = integer_threshold(partial(chain.on_channels, dtype=dtype), 3000, CHANNELS)
        except NotMonotoneError:
            assert dtype == torch.float16  # sums times 1 / sqrt(eps) pass 65504
            continue
        sums = torch.arange(-3000, 3001, dtype=torch.int32)[:, None].expand(-1, CHANNELS)
        expected = bits_of_chain(chain, sums.to(dtype))
        assert torch.equal(compare(sums, threshold), expected), seed


def test_constant_channels():
    """The extremes of int32, which every sum and no sum reaches."""
    constants = torch.tensor([1.0, -1.0, 0.0, -0.0, -1e-45])
    threshold = integer_threshold(lambda sums: constants, 50, 5)
    assert threshold.threshold.tolist() == [INT_MIN, INT_MAX, INT_MIN, INT_MIN, INT_MAX]
    assert threshold.rising.all()


def test_thresholds_by_hand():
    slopes = torch.tensor([1.0, -1.0, 2.0, -2.0, 1.0, -1.0])
    shifts = torch.tensor([0.0, 0.0, -5.0, 5.0, 50.0, 50.0])
    threshold = integer_threshold(lambda sums: sums * slopes + shifts, 50, 6)
    # x >= 0; x <= 0; 2x >= 5; 2x <= 5; x >= -50 and x <= 50, always.
    assert threshold.threshold.tolist() == [0, 0, 3, 2, INT_MIN, INT_MIN]
    assert threshold.rising.tolist() == [True, False, True, False, True, True]


def test_no_inputs_at_all():
    """A layer without inputs has one sum, 0."""
    threshold = integer_threshold(lambda sums: sums + torch.tensor([-1.0, 1.0]), 0, 2)
    assert threshold.threshold.tolist() == [INT_MAX, INT_MIN]


def test_number_of_evaluations():
    """Bisection: a few for thousands of integers."""
    calls = []

    def evaluate(sums: Tensor) -> Tensor:
        calls.append(sums)
        return sums - 1234.5

    assert integer_threshold(evaluate, 9216, 3).threshold.tolist() == [1235] * 3
    assert len(calls) < 25


# --- floats ---------------------------------------------------------------------------------------

LIMIT = 2.0**100


def many_floats(threshold: Tensor) -> Tensor:
    """`[N, C]`: every exponent and sign, ordinary values, and the neighbours of the threshold."""
    mantissas = 1 + torch.rand(4, 249)
    powers = torch.ldexp(mantissas, torch.arange(-149, 100)).flatten()
    subnormal = torch.arange(0, 40, dtype=torch.int32).view(torch.float32)
    positive = torch.cat([powers, subnormal, torch.rand(500), torch.tensor([LIMIT, 1.0, 6.0])])
    common = torch.cat([positive, -positive, 30 * torch.randn(2000)])
    near = [threshold.clamp(-LIMIT, LIMIT)]
    for towards in (LIMIT, -LIMIT):
        neighbour = near[0]
        for _ in range(40):
            neighbour = torch.nextafter(neighbour, torch.tensor(towards))
            near.append(neighbour)
    return torch.cat([common[:, None].expand(-1, len(threshold)), torch.stack(near)])


@pytest.mark.parametrize("largest", [1, 50])
@pytest.mark.parametrize("seed", range(40))
def test_floats_of_every_size(seed, largest):
    chain = RandomChain(seed, largest, extreme=False)
    try:
        threshold = float_threshold(chain.on_channels, CHANNELS)
    except NotMonotoneError:
        pytest.fail("2^100 leaves room for several BatchNorms")
    assert threshold.threshold.dtype == torch.float32
    values = many_floats(threshold.threshold)
    assert torch.equal(compare(values, threshold), bits_of_chain(chain, values))


def test_floats_for_extreme_parameters():
    refused = 0
    for seed in range(200):
        chain = RandomChain(seed, 9, extreme=True)
        try:
            threshold = float_threshold(chain.on_channels, CHANNELS)
        except NotMonotoneError:
            refused += 1
            continue
        values = many_floats(threshold.threshold)
        assert torch.equal(compare(values, threshold), bits_of_chain(chain, values)), seed
    assert 30 < refused < 150


def test_float_thresholds_by_hand():
    third = torch.tensor(1 / 3)
    shifts = torch.tensor([0.0, -third, third, 1e-45, 1e38, -1e38])
    slopes = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    threshold = float_threshold(lambda x: x * slopes + shifts, 6)
    inf = float("inf")
    expected = torch.tensor([0.0, third, third, -1e-45, -inf, inf])
    assert torch.equal(threshold.threshold, expected)
    assert threshold.rising.tolist() == [True, True, False, True, True, True]


def test_not_a_number():
    """NaN never passes a comparison, and the sign of a NaN is -1 as well."""
    chain = nn.BatchNorm2d(CHANNELS).eval()
    chain.weight.data.normal_()
    threshold = float_threshold(lambda x: chain(x.view(1, -1, 1, 1)).flatten(), CHANNELS)
    values = torch.full((3, CHANNELS), float("nan"))
    assert not compare(values, threshold).any()
    assert not bits_of_chain(chain, values).any()


def test_channels_of_nan_are_refused():
    def evaluate(x: Tensor) -> Tensor:
        return torch.where(torch.arange(5) == 3, float("nan"), x)

    for find in (partial(integer_threshold, largest=9), float_threshold):
        with pytest.raises(NotMonotoneError, match="NaN can occur in channel 3"):
            find(evaluate, channels=5)


# --- which calls are monotone ---------------------------------------------------------------------


def direction_of(module: nn.Module, channels: int) -> Tensor | str:
    """Of the last call that the module makes."""
    graph = capture(module.eval(), [torch.randn(2, channels)]).graph
    return direction([node for node in graph.nodes if node.op == "call_function"][-1])


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_direction():
    norm = nn.BatchNorm1d(4)
    norm.weight.data = torch.tensor([1.0, -2.0, 0.0, 3.0])
    assert direction_of(norm, 4).tolist() == [1, -1, 1, 1]
    assert direction_of(nn.BatchNorm1d(4, affine=False), 4).tolist() == [1] * 4
    for module in (nn.ReLU(), nn.Hardtanh(), nn.ReLU6(), nn.PReLU(), nn.LeakyReLU(), nn.Tanh()):
        assert direction_of(module, 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: -x, [-1, -1, -1]),
        (lambda x: 1 - x, [-1, -1, -1]),
        (lambda x: x - 1, [1, 1, 1]),
        (lambda x: x * -2.0, [-1, -1, -1]),
        (lambda x: x / torch.tensor([1.0, -2.0, 3.0]), [1, -1, 1]),
        (lambda x: torch.tensor([1.0, -2.0, 3.0]) * x, [1, -1, 1]),
        (lambda x: x + torch.tensor([1.0, -2.0, 3.0]), [1, 1, 1]),
        (lambda x: torch.tensor([1.0, -2.0, 3.0]) - x, [-1, -1, -1]),
        (lambda x: torch.maximum(x, torch.tensor(0.5)), [1, 1, 1]),
    ],
)
def test_direction_of_arithmetic(function, expected):
    assert direction_of(Call(function), 3).tolist() == expected


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (nn.GELU(), "GELU is not known"),
        (nn.LeakyReLU(-1), "LeakyReLU has a negative slope"),
        (nn.LeakyReLU(float("nan")), "LeakyReLU has a negative slope"),
        (nn.PReLU(init=-0.5), r"PReLU has a negative slope \(-0.5 in channel 0\)"),
        (nn.PReLU(init=float("nan")), "PReLU has a negative slope"),
        (nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d keeps no running statistics"),
        (Call(lambda x: x * x), "mul is not known to be monotone"),
        (Call(lambda x: x + x.flip(1)), "add is not a function of one value"),
        (Call(lambda x: x[:, :, None] + torch.randn(3)), "add changes the shape"),
        (Call(lambda x: x * float("nan")), "mul is not known"),
        (Call(torch.reciprocal), "reciprocal is not known"),
        (Call(lambda x: x.mean(1, keepdim=True)), "mean changes the shape"),
    ],
)
def test_not_monotone(module, sentence):
    assert re.match(sentence, str(direction_of(module, 4)))
