"""Forward values and gradients of the quantizers against the published formulas."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from bnn_ext import quantizers

SIGNS = ("ste_sign", "approx_sign", "swish_sign", "identity_sign")
NAMES = (*SIGNS, "stochastic_sign", "magnitude_aware_sign", "xnor_sign")
SCALED = (quantizers.magnitude_aware_sign, quantizers.xnor_sign)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

E = 2.0**-7  # exact in every dtype here, also as 1 ± E
EDGES = (-1 - E, -1.0, -1 + E, -0.5, -E, -0.0, 0.0, E, 0.25, 0.5, 1 - E, 1.0, 1 + E)
UNUSUAL = (-math.inf, -3e4, 3e4, math.inf, math.nan)


def gradient(quantizer, x: Tensor, upstream: float = 3.0) -> Tensor:
    x = x.clone().requires_grad_()
    quantizer(x).backward(torch.full_like(x, upstream))
    return x.grad


# --- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SIGNS)
def test_sign_forward(name, dtype):
    x = torch.tensor([-math.inf, -2.0, -E, -0.0, 0.0, E, 2.0, math.inf, math.nan], dtype=dtype)
    expected = torch.tensor([-1, -1, -1, 1, 1, 1, 1, 1, -1], dtype=dtype)
    out = quantizers.get(name)(x)
    assert out.dtype == dtype
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_autocast(name):
    quantizer = quantizers.get(name)
    assert quantizer(torch.empty(3, 0)).shape == (3, 0)
    x = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(x).dtype == torch.float32
        assert quantizer(x.half()).dtype == torch.float16


# --- gradients ------------------------------------------------------------------------------------


def ste_derivative(x: float) -> float:
    return 1.0 if abs(x) <= 1 else 0.0


def approx_derivative(x: float) -> float:
    if -1 <= x < 0:
        return 2 + 2 * x
    if 0 <= x < 1:
        return 2 - 2 * x
    return 0.0


def swish_derivative(x: float, beta: float = 5.0) -> float:
    z = beta * x
    return beta * (2 - z * math.tanh(z / 2)) / (1 + math.cosh(z))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("ste_sign", ste_derivative),
        ("approx_sign", approx_derivative),
        ("identity_sign", lambda x: 1.0),
    ],
)
def test_piecewise_gradient_is_the_formula(name, derivative, dtype):
    """All values are short binary fractions, so that the formula is exact in every dtype."""
    x = torch.tensor(EDGES + UNUSUAL, dtype=dtype)
    expected = torch.tensor([3 * derivative(v) for v in EDGES + UNUSUAL], dtype=dtype)
    grad = gradient(quantizers.get(name), x)
    assert grad.dtype == dtype
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*SIGNS, "stochastic_sign"])
def test_large_tensors_are_many_small_ones(name, dtype):
    """Vector code and its scalar tails agree on every edge, in every lane."""
    x = torch.tensor(EDGES + UNUSUAL, dtype=dtype)
    upstream = torch.tensor([3.0, -math.inf, math.inf, 0.5, -0.0, 1.0], dtype=dtype)
    x, upstream = torch.cartesian_prod(x, upstream).T.contiguous()
    quantizer = quantizers.get(name)
    singles = []
    for value, grad in zip(x, upstream, strict=True):
        leaf = value.clone().requires_grad_()
        out = quantizer(leaf)
        out.backward(grad)
        singles.append((out.detach(), leaf.grad))
    outs, grads = (torch.stack(values) for values in zip(*singles, strict=True))
    leaf = x.repeat(11)[:-1].requires_grad_()
    out = quantizer(leaf)
    out.backward(upstream.repeat(11)[:-1])
    if name != "stochastic_sign":
        assert torch.equal(out, outs.repeat(11)[:-1])
    # NaN where an infinite gradient meets a derivative of 0, alike.
    torch.testing.assert_close(leaf.grad, grads.repeat(11)[:-1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("beta", [1.0, 5.0, 10.0])
def test_swish_gradient_is_the_formula(beta):
    quantizer = functools.partial(quantizers.swish_sign, beta=beta)
    x = torch.tensor(EDGES + (-3.0, 3.0), dtype=torch.float64)
    expected = torch.tensor([3 * swish_derivative(v, beta) for v in x.tolist()], dtype=x.dtype)
    # A dozen float64 operations on each side; 2 - z tanh(z / 2) loses a few bits near its zero.
    torch.testing.assert_close(gradient(quantizer, x), expected, rtol=1e-13, atol=1e-14)


def test_swish_gradient_is_the_derivative_of_sign_swish():
    x = torch.linspace(-4, 4, 801, dtype=torch.float64, requires_grad=True)
    z = 5 * x
    sign_swish = 2 * torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))) - 1
    (expected,) = torch.autograd.grad(sign_swish.sum(), x)
    # The sums of autograd cancel where the result is small, so the bound is absolute.
    torch.testing.assert_close(
        gradient(quantizers.swish_sign, x.detach(), 1.0), expected, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_swish_gradient_never_overflows(dtype):
    x = torch.tensor([*UNUSUAL, -200.0, 200.0], dtype=dtype)
    assert torch.equal(gradient(quantizers.swish_sign, x), torch.zeros_like(x))
    x = torch.cat([torch.linspace(-300, 300, 601), torch.linspace(-3, 3, 601)]).to(dtype)
    grad = gradient(quantizers.swish_sign, x)
    expected = gradient(quantizers.swish_sign, x.double())
    # Some ten roundings, the first of z, of values up to 15 = 3 beta: half an eps of 15 each.
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=75 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["ste_sign", "approx_sign", "swish_sign", "stochastic_sign"])
def test_blocked_gradient_is_zero_even_if_the_incoming_is_infinite(name):
    x = torch.tensor([-math.inf, math.inf, math.nan])
    assert torch.equal(gradient(quantizers.get(name), x, upstream=math.inf), torch.zeros(3))


# --- stochastic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_stochastic_probability(dtype):
    generator = torch.Generator().manual_seed(7)
    draws = 100_000
    for value in (-1.5, -1.0, -0.75, -E, 0.0, 0.25, 0.996, 1.0, 1.5):
        x = torch.full((draws,), value, dtype=dtype)
        out = quantizers.stochastic_sign(x, generator)
        assert out.dtype == dtype
        assert torch.equal(out.abs(), torch.ones_like(out))
        p = min(max((x[0].item() + 1) / 2, 0), 1)
        sigma = math.sqrt(p * (1 - p) / draws)  # of a binomial frequency; 0 at p = 0 and 1
        frequency = (out > 0).double().mean().item()
        # Beyond 5 sigma lies a probability of 6e-7, and the seed is fixed.
        assert abs(frequency - p) <= 5 * sigma


def test_stochastic_unusual_values():
    for _ in range(20):
        out = quantizers.stochastic_sign(torch.tensor([-math.inf, math.inf, math.nan]))
        assert torch.equal(out, torch.tensor([-1.0, 1.0, -1.0]))


def test_stochastic_never_draws_plus_one_at_minus_one(monkeypatch):
    """Not even when the uniform variate is exactly 0, which happens once in 2^24 draws."""
    seed = torch.tensor(5)  # one that draws 0 soon enough
    least = torch.full((1 << 24,), -1.0)
    assert (torch.ops.bnn_ext.stochastic_sign(least + 2**-24, seed) == 1).any()
    assert (torch.ops.bnn_ext.stochastic_sign(least, seed) == -1).all()

    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    out = quantizers.stochastic_sign(torch.tensor([-1.0, -1 + E]).double())
    assert torch.equal(out, torch.tensor([-1.0, 1.0]).double())


def test_stochastic_gradient():
    x = torch.tensor(EDGES + UNUSUAL)
    expected = torch.tensor([3 * ste_derivative(v) for v in EDGES + UNUSUAL])
    assert torch.equal(gradient(quantizers.stochastic_sign, x), expected)


def test_stochastic_generators():
    x = torch.zeros(1000)
    own = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    first = quantizers.stochastic_sign(x, own)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(quantizers.stochastic_sign(x, own), first)
    assert torch.equal(quantizers.stochastic_sign(x, own.manual_seed(1)), first)
    torch.manual_seed(2)
    first = quantizers.stochastic_sign(x)
    torch.manual_seed(2)
    assert torch.equal(quantizers.stochastic_sign(x), first)


# --- scaled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", SCALED, ids=repr)
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (3, 2, 3, 3), (3, 2, 3, 1, 2)])
def test_scaled_sign(shape, quantizer):
    weight = torch.randn(shape, dtype=torch.float64)
    scale = torch.stack([channel.abs().mean() for channel in weight])
    column = scale.view(-1, *[1] * (len(shape) - 1))
    signs, split_scale = quantizers.split(quantizer, weight)
    assert torch.equal(signs, torch.where(weight >= 0, 1.0, -1.0).double())
    # The mean may add in another order: two float64 roundings of a mean of at most 18 values.
    torch.testing.assert_close(split_scale, scale, rtol=1e-15, atol=0)
    out = quantizer(weight)
    assert torch.equal(out, signs * split_scale.view_as(column))


def test_magnitude_aware_gradient():
    weight = torch.tensor([EDGES, EDGES[::-1]], dtype=torch.float64)
    scale = weight.abs().mean(1, keepdim=True)
    expected = 3.0 * scale * (weight.abs() <= 1)
    # The order of the mean's sum: a rounding or two.
    grad = gradient(quantizers.magnitude_aware_sign, weight)
    torch.testing.assert_close(grad, expected, rtol=4e-16, atol=0)


@pytest.mark.parametrize("shape", [(2, 13), (2, 13, 1, 1), (1, 2, 13)])
def test_xnor_gradient_is_the_formula(shape):
    """`g mean(|w|) [|w| <= 1] + sign(w) mean(g sign(w))` for every output channel."""
    weight = torch.tensor([EDGES, EDGES[::-1]], dtype=torch.float64).view(shape)
    g = torch.randn(shape, dtype=torch.float64)
    leaf = weight.clone().requires_grad_()
    quantizers.xnor_sign(leaf).backward(g)
    expected = np.empty(shape)
    for channel in range(shape[0]):
        w, upstream = weight[channel].numpy(), g[channel].numpy()
        s = np.where(w >= 0, 1, -1)
        expected[channel] = upstream * np.abs(w).mean() * (np.abs(w) <= 1)
        expected[channel] += s * (upstream * s).mean()
    # Means of up to 26 values, and one sum that may cancel: a few roundings of values up to 3.
    torch.testing.assert_close(leaf.grad, torch.tensor(expected), rtol=0, atol=5e-15)


@pytest.mark.parametrize("quantizer", SCALED, ids=repr)
@pytest.mark.parametrize("dtype", FLOATS)
def test_scaled_sign_dtypes(dtype, quantizer):
    weight = torch.randn(3, 8).to(dtype).requires_grad_()
    signs, scale = quantizers.split(quantizer, weight)
    assert signs.dtype == dtype
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert scale.requires_grad == (quantizer is quantizers.xnor_sign)
    assert quantizer(weight).dtype == dtype


@pytest.mark.parametrize("quantizer", SCALED, ids=repr)
def test_scaled_sign_is_one_object(quantizer):
    assert copy.deepcopy(quantizer) is quantizer
    assert pickle.loads(pickle.dumps(quantizer)) is quantizer
    assert quantizers.get(repr(quantizer)) is quantizer


# --- tanh -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 20.0, 1e35])
def test_tanh_sign(sharpness):
    x = torch.tensor(EDGES + (-4.0, 4.0), dtype=torch.float64)
    expected = np.tanh(sharpness * x.numpy())
    # torch's tanh and numpy's, each right to a few units in the last place.
    through = quantizers.TanhSign(sharpness)
    torch.testing.assert_close(through(x), torch.tensor(expected), rtol=1e-14, atol=0)
    assert torch.equal(gradient(through, x), torch.full_like(x, 3.0))
    slope = quantizers.TanhSign(sharpness, straight_through=False)
    assert torch.equal(slope(x), through(x))
    expected = torch.tensor(3 * sharpness * (1 - expected**2))
    # 1 - tanh**2 cancels where tanh is near ±1, so the bound is relative to the sharpness.
    torch.testing.assert_close(gradient(slope, x), expected, rtol=1e-13, atol=2e-15 * sharpness)


def test_tanh_sign_is_finite_and_becomes_the_sign():
    x = torch.tensor([-1e3, -1e-30, 0.0, 1e-30, 1e3])
    out = quantizers.TanhSign(1e35)(x)
    assert torch.equal(out, torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))


def test_tanh_sign_sharpness():
    quantizer = quantizers.TanhSign()
    x = torch.tensor([0.5])
    before = quantizer(x)
    quantizer.sharpness = 3
    assert quantizer(x) > before
    for wrong in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="sharpness must be positive and finite, found"):
            quantizer.sharpness = wrong
    assert quantizer.sharpness == 3
    assert repr(quantizer) == "TanhSign(3, straight_through=True)"


# --- names and predicates -------------------------------------------------------------------------


def test_get():
    for name in NAMES:
        assert quantizers.get(name) is getattr(quantizers, name)
    assert quantizers.get(torch.tanh) is torch.tanh


def test_get_errors():
    with pytest.raises(ValueError, match="ste_sign, approx_sign.*found 'sgn'"):
        quantizers.get("sgn")
    for wrong in (None, 1, torch.ones(1)):
        with pytest.raises(TypeError, match="name or a callable, found"):
            quantizers.get(wrong)


def test_register(monkeypatch):
    monkeypatch.setattr(quantizers, "_REGISTRY", dict(quantizers._REGISTRY))
    monkeypatch.setattr(quantizers, "_SIGNS", list(quantizers._SIGNS))

    @quantizers.register("identity_gradient", is_sign=True)
    def identity_gradient(x: Tensor) -> Tensor:
        return x + (quantizers.sign(x) - x).detach()

    assert quantizers.get("identity_gradient") is identity_gradient
    assert quantizers.is_sign(identity_gradient)
    with pytest.raises(ValueError, match="'ste_sign', which is registered"):
        quantizers.register("ste_sign")(identity_gradient)
    with pytest.raises(ValueError, match="identity_gradient"):
        quantizers.get("unheard")


def test_is_sign():
    for name in (*SIGNS, "stochastic_sign"):
        assert quantizers.is_sign(quantizers.get(name))
    assert quantizers.is_sign(functools.partial(quantizers.swish_sign, beta=2.0))
    assert quantizers.is_sign(functools.partial(quantizers.stochastic_sign, generator=None))
    assert quantizers.is_sign(quantizers.TanhSign())  # in eval mode
    assert not any(quantizers.is_sign(quantizer) for quantizer in SCALED)
    assert not quantizers.is_sign(torch.sign)  # 0 at 0


def test_deterministic():
    assert quantizers.deterministic(quantizers.stochastic_sign) is quantizers.ste_sign
    own = functools.partial(quantizers.stochastic_sign, generator=torch.Generator())
    assert quantizers.deterministic(own) is quantizers.ste_sign
    assert quantizers.deterministic(quantizers.TanhSign(2.0)) is quantizers.ste_sign
    for quantizer in (quantizers.approx_sign, *SCALED, torch.tanh):
        assert quantizers.deterministic(quantizer) is quantizer


def test_split_of_a_plain_callable():
    weight = torch.randn(2, 3)
    values, scale = quantizers.split(torch.tanh, weight)
    assert torch.equal(values, torch.tanh(weight))
    assert scale is None


def test_factor():
    signs = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    out, scale = quantizers.factor(signs)
    assert torch.equal(out, signs)
    assert scale is None
    out, scale = quantizers.factor(signs * torch.tensor([[0.3], [0.0]]))
    assert torch.equal(out, torch.tensor([[1.0, -1.0], [1.0, 1.0]]))  # -0.0 counts as +
    assert torch.equal(scale, torch.tensor([0.3, 0.0]))


@pytest.mark.parametrize("wrong", [0.0, 2.0, math.nan])
def test_factor_refuses_other_values(wrong):
    with pytest.raises(ValueError, match="channel 1"):
        quantizers.factor(torch.tensor([[1.0, -1.0], [1.0, wrong]]))


# --- in PyTorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_break(name):
    quantizer = quantizers.get(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: quantizer(x), backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 9)
    results = []
    for function in (quantizer, compiled):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        out.backward(x)
        results.append((out, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_own_generator_is_copied_with_its_state():
    own = functools.partial(quantizers.stochastic_sign, generator=torch.Generator().manual_seed(11))
    x = torch.zeros(100)
    own(x)
    other = copy.deepcopy(own)
    assert other.keywords["generator"] is not own.keywords["generator"]
    assert torch.equal(own(x), other(x))
