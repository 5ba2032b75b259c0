"""The kernels behind the quantizers: equal to torch's calls at every level, in every layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bnn_ext.ops import signs

SIZES = (0, 1, 15, 127, 128, 4099, 70_001)
SPECIAL = (-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf, math.nan, 1 + 2**-23, -1 - 2**-23, 1e-45)


def values(size: int) -> Tensor:
    x = torch.randn(size)
    x[: len(SPECIAL)] = torch.tensor(SPECIAL)[:size]
    return x


@pytest.mark.parametrize("size", SIZES)
def test_values(level, size):
    x, grad = values(size), values(size).flip(0).nan_to_num(nan=3.0)
    calls = (
        lambda: signs.sign(x),
        lambda: signs.straight_through(grad, x),
        lambda: signs.piecewise_quadratic(grad, x),
    )
    for call in calls:
        expected = call()  # torch's, see test_differentiable_backwards_get_torchs_calls
        with torch.no_grad():
            assert torch.equal(call(), expected)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3),
        lambda x: x[:, ::2, 1:],
        lambda x: x[:1].expand(5, -1, -1, -1),
        lambda x: x.to(memory_format=torch.channels_last)[:, :5],
        lambda x: x.to(memory_format=torch.channels_last)[:1],
        lambda x: x.to(memory_format=torch.channels_last)[:, :, :1, :1],
        lambda x: x[:, :1],
        lambda x: x[:0],
    ],
)
def test_layouts(layout):
    x, grad = layout(torch.randn(3, 8, 9, 10)), layout(torch.randn(3, 8, 9, 10))
    calls = (
        lambda: signs.sign(x),
        lambda: signs.straight_through(grad, x),
        lambda: signs.piecewise_quadratic(grad, x),
        lambda: signs.straight_through(grad.contiguous(), x),
    )
    for call in calls:
        expected = call()
        with torch.no_grad():
            found = call()
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    drawn = signs.stochastic_sign(x)
    assert drawn.shape == x.shape
    assert drawn.stride() == signs.sign(x).stride()


def philox(counters: np.ndarray, seed: int) -> np.ndarray:
    """Philox4x32-10 of Salmon et al., 2011: the four words of each 64-bit counter."""
    low, key = np.uint64(0xFFFFFFFF), [seed & 0xFFFFFFFF, seed >> 32]
    words = [counters & low, counters >> np.uint64(32), *np.zeros((2, len(counters)), np.uint64)]
    for _ in range(10):
        a, b = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        high = np.uint64(32)
        words = [
            (b >> high) ^ words[1] ^ np.uint64(key[0]),
            b & low,
            (a >> high) ^ words[3] ^ np.uint64(key[1]),
            a & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(words)


def test_philox():
    """Its authors' known answer."""
    answer = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(np.zeros(1, np.uint64), 0)[:, 0].tolist() == answer


@pytest.mark.parametrize("seed", [0, 3, 3 + (1 << 40), (1 << 63) - 1])
@pytest.mark.parametrize("size", [1, 128, 100_003])
def test_draws_are_those_of_philox(level, size, seed):
    blocks = np.arange(-(-size // 128) * 32, dtype=np.uint64)
    words = philox(blocks, seed).reshape(4, -1, 32).swapaxes(0, 1).reshape(-1)[:size]
    thresholds = torch.from_numpy((words >> np.uint64(8)) * 2.0**-23 - 1).float()
    draw = torch.ops.bnn_ext.stochastic_sign
    x = torch.rand(size) * 2 - 1
    assert torch.equal(draw(x, torch.tensor(seed)), torch.where(x > thresholds, 1.0, -1.0))
    assert (draw(thresholds, torch.tensor(seed)) == -1).all()
    assert (draw(thresholds + 2**-24, torch.tensor(seed)) == 1).all()


@pytest.mark.parametrize("p", [0.0, 0.125, 0.5, 0.8, 1.0])
def test_probability(p):
    n = 1 << 20
    plus = int((signs.stochastic_sign(torch.full((n,), 2 * p - 1)) == 1).sum())
    assert abs(plus - n * p) <= 5 * math.sqrt(n * p * (1 - p))  # five standard deviations


def test_differentiable_backwards_get_torchs_calls():
    x = torch.randn(50, requires_grad=True)
    grad = torch.randn(50, requires_grad=True)
    for function in (signs.straight_through, signs.piecewise_quadratic):
        (again,) = torch.autograd.grad(function(grad, x).sum(), grad)
        assert torch.equal(again, function(torch.ones(50), x.detach()))


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("sign", (torch.zeros(3).double(),)),
        ("stochastic_sign", (torch.zeros(3), torch.zeros(2, dtype=torch.int64))),
        ("stochastic_sign", (torch.zeros(3), torch.tensor(1.0))),
        ("straight_through", (torch.zeros(3), torch.zeros(4))),
        ("straight_through", (torch.zeros(3, 4), torch.zeros(4, 3).t())),
        ("sign", (torch.zeros(3, 4)[:, ::2],)),
        ("piecewise_quadratic", (torch.zeros(3).half(), torch.zeros(3))),
    ],
)
def test_operators_refuse_what_they_cannot_read(operator, arguments):
    with pytest.raises(RuntimeError):
        getattr(torch.ops.bnn_ext, operator)(*arguments)
