"""Signs and binary weights as people spell them, and things that only look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnn_ext
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.fused import FusedConv2d, FusedLinear
from bnn_ext.nn.packed import PackedConv2d, PackedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

ON_BITS = (PackedConv2d, PackedLinear, FusedConv2d, FusedLinear)


class Between(nn.Module):
    """BatchNorm, a function, and a convolution with a weight that another function makes."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor], weight: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)
        self.activation, self.binary = activation, weight
        self.weight = nn.Parameter(torch.randn(7, 12, 3, 3))
        with torch.no_grad():
            self.norm.weight.normal_()
            self.norm.bias.normal_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.activation(self.norm(x)), self.binary(self.weight), padding=1)


def converted(model: nn.Module) -> PackedNetwork:
    """Both modes give the model's outputs, up to where a scale is rounded."""
    x = torch.randn(2, 12, 6, 5)
    with torch.no_grad():
        expected = model(x)
    for real_layers in ("fused", "torch"):
        fast = bnn_ext.convert(model, torch.randn(3, 12, 6, 5), real_layers=real_layers)
        # Sums of ±s are rounded again and again, and ours once; so are sums of ±1 and noise.
        torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-4)
    return fast


def on_bits(fast: PackedNetwork) -> bool:
    return any(isinstance(step, ON_BITS) for step in fast.steps)


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


class SignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class InPlaceFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.sign_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def bireal(x: Tensor) -> Tensor:
    """The piecewise polynomial of Bi-Real Net, by masks."""
    out = torch.sign(x)
    low, middle, high = x < -1, x < 0, x < 1
    first = (-1) * low.float() + (x * x + 2 * x) * (1 - low.float())
    second = first * middle.float() + (-x * x + 2 * x) * (1 - middle.float())
    third = second * high.float() + 1 * (1 - high.float())
    return out.detach() - third.detach() + third


def through(surrogate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A straight-through estimator: the sign's value, the surrogate's gradient."""
    return lambda x: surrogate(x) + (sign(x) - surrogate(x)).detach()


def swish(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(5 * x) * (1 + 5 * x * (1 - torch.sigmoid(5 * x))) - 1


def writing_into_data(x: Tensor) -> Tensor:
    x = x.clone()
    x.data = x.data.sign()
    return x


SIGNS = {
    "torch.sign": torch.sign,
    "method": lambda x: x.sign(),
    "sgn": torch.sgn,
    "in place": lambda x: x.sign_(),
    "where >=": sign,
    "where >": lambda x: torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x)),
    "where <": lambda x: torch.where(x < 0, -1.0, 1.0),
    "where scalars": lambda x: torch.where(x >= 0, 1.0, -1.0).to(x.dtype),
    "bool to ±1": lambda x: (x >= 0).float() * 2 - 1,
    "2 bool - 1": lambda x: 2 * (x > 0).to(x.dtype) - 1,
    "bool - 0.5": lambda x: ((x >= 0).float() - 0.5) * 2,
    "1 - 2 bool": lambda x: 1 - 2 * (x < 0).float(),
    "difference of bools": lambda x: (x >= 0).float() - (x < 0).float(),
    "ge method": lambda x: x.ge(0).type_as(x).mul(2).sub(1),
    "two ifs": lambda x: (x >= 0) * 1.0 + (x < 0) * -1.0,
    "round of hard sigmoid": lambda x: 2 * torch.round(F.hardtanh((x + 1) / 2, 0, 1)) - 1,
    "ceil": lambda x: 2 * torch.ceil(torch.clamp(x, 0, 1)) - 1,
    "copysign": lambda x: torch.copysign(torch.ones_like(x), x + 0.0),
    "bireal": bireal,
    "through identity": lambda x: x + (sign(x) - x).detach(),
    "through clamp": through(lambda x: x.clamp(-1, 1)),
    "through hardtanh": through(F.hardtanh),
    "through tanh": through(torch.tanh),
    "through swish": through(swish),
    "sign of clamp": lambda x: torch.sign(torch.clamp(x, -1, 1)),
    "sign of hardtanh": lambda x: F.hardtanh(x).sign(),
    "sign of tanh": lambda x: torch.tanh(x).sign(),
    "sign of a scale": lambda x: torch.sign(3.5 * x),
    "function": SignFunction.apply,
    "function in place": lambda x: InPlaceFunction.apply(x.clone()),
    ".data": writing_into_data,
    "twice": lambda x: sign(sign(x)),
    "clamped sign": lambda x: torch.sign(x).clamp(-1, 1),
    "eps": lambda x: torch.sign(x + 1e-30).clamp_min(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNS)
def test_sign(name):
    fast = converted(Between(SIGNS[name], lambda w: w.sign()))
    assert on_bits(fast), fast.report


NOT_SIGNS = {
    "0 and 1": lambda x: (x >= 0).float(),
    "0.5": lambda x: 0.5 * torch.sign(x) + 0.25,
    "three values": lambda x: torch.round(torch.clamp(x, -1, 1)),
    "ternary": lambda x: torch.sign(x) * (x.abs() > 0.5),
    "hardtanh": F.hardtanh,
    "tanh": lambda x: torch.tanh(1000 * x),
    "sign of relu": lambda x: F.relu(x).sign(),
    "sign of dropped values": lambda x: torch.sign(x * (x.abs() > 0.3)),
    "four values": lambda x: torch.sign(x) * torch.where(x.abs() > 0.7, 1.5, 0.5),
    "step of ±1 for large ones": lambda x: torch.where(x.abs() > 5e3, -sign(x), 0.5 * x),
}


@pytest.mark.parametrize("name", NOT_SIGNS)
def test_what_is_no_sign_stays_correct(name):
    fast = converted(Between(NOT_SIGNS[name], lambda w: w.sign()))
    assert not on_bits(fast), fast.report


SHIFTED = {
    "shifted": lambda x: torch.sign(x - 0.3),
    "negated": lambda x: torch.sign(-x),
    "minus sign": lambda x: -torch.sign(x),
    "threshold": lambda x: torch.where(x > 0.7, 1.0, -1.0),
    "less": lambda x: torch.where(x <= 0.2, 1.0, -1.0),
    "shift per channel": lambda x: torch.sign(x - torch.linspace(-1, 1, 12).view(-1, 1, 1)),
    "abs": lambda x: x.abs().sign(),
    "relu and where": lambda x: torch.where(F.relu(x) > 0, 1.0, -1.0),
    "window": lambda x: torch.where(x.abs() < 0.5, 1.0, -1.0),
    "of square": lambda x: torch.sign(x * x - 0.25),
    "scaled sign": lambda x: 0.5 * torch.sign(x),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_signs_of_something_else_stay_correct(name):
    """On bits or not: a shift that were overlooked would show."""
    converted(Between(SHIFTED[name], lambda w: w.sign()))


def test_a_step_elsewhere_is_told_from_a_sign():
    """Between the probes of a spelling nothing must be taken for granted that matters."""
    for step in (1e-5, 0.05, 0.3, 0.6, 3.0, 50.0):
        converted(Between(lambda x, s=step: torch.sign(x - s), lambda w: w.sign()))


# --- weights --------------------------------------------------------------------------------------


def scaled(dims: tuple[int, ...] | int) -> Callable[[Tensor], Tensor]:
    return lambda w: w.abs().mean(dims, keepdim=True) * w.sign()


def standardized(w: Tensor) -> Tensor:
    w = w - w.mean((1, 2, 3), keepdim=True)
    return (w / w.std((1, 2, 3), keepdim=True)).sign()


def mean_of_means(w: Tensor) -> Tensor:
    """As in Bi-Real Net: the mean magnitude of each filter, one dimension after the other."""
    s = w.abs().mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)
    no_grad = s.detach() * torch.sign(w)
    clipped = torch.clamp(w, -1.0, 1.0)
    return no_grad.detach() - clipped.detach() + clipped


def few_zeros(w: Tensor) -> Tensor:
    w = w.sign()
    w.view(-1)[5] = 0
    return w


WEIGHTS = {
    "sign": torch.sign,
    "where": lambda w: torch.where(w > 0, 1.0, -1.0),
    "one scale": lambda w: w.abs().mean() * w.sign(),
    "scale per filter": scaled((1, 2, 3)),
    "mean of means": mean_of_means,
    "median": lambda w: w.flatten(1).abs().median(1)[0].view(-1, 1, 1, 1) * w.sign(),
    "negative scale": lambda w: -0.7 * w.sign(),
    "standardized": standardized,
    "noise": lambda w: w + (w.sign() - w).detach(),
    "clamp noise": lambda w: w.clamp(-1, 1) + (w.sign() - w.clamp(-1, 1)).detach(),
    "tanh noise": lambda w: torch.tanh(w) + (w.sign() - torch.tanh(w)).detach(),
    "bool": lambda w: (w > 0).float() * 2 - 1,
    "bool times scale": lambda w: ((w > 0).float() - 0.5) * 0.3,
    "function": SignFunction.apply,
    "few zeros": few_zeros,
    "permuted": lambda w: w.permute(0, 2, 3, 1).contiguous().sign().permute(0, 3, 1, 2),
    "expanded": lambda w: w[:1].sign().expand(7, -1, -1, -1),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight(name):
    weight = WEIGHTS[name]
    if name == "few zeros":  # the sign of 0 counts as +s: outputs differ, and a note says so
        model = Between(torch.sign, weight)
        with pytest.warns(UserWarning, match="not equal"):
            fast = bnn_ext.convert(model, torch.randn(3, 12, 6, 5), real_layers="torch")
        assert "1 weights are 0 and count as +s" in str(fast.report)
    else:
        fast = converted(Between(torch.sign, weight))
    assert on_bits(fast), fast.report


NOT_BINARY = {
    "real": lambda w: w,
    "ternary": lambda w: w.sign() * (w.abs() > 0.7),
    "scale per input channel": scaled((0, 2, 3)),
    "scale per kernel": scaled((2, 3)),
    "scale per position": scaled(1),
    "two magnitudes": lambda w: torch.where(w.abs() > 1, 1.0, 0.98) * w.sign(),
    "0 and 1": lambda w: (w > 0).float(),
    "asymmetric": lambda w: torch.where(w > 0, 1.0, -0.9),
    "quarter": lambda w: torch.round(w.clamp(-1, 1) * 4) / 4,
}


@pytest.mark.parametrize("name", NOT_BINARY)
def test_weights_of_more_values_stay_real(name):
    fast = converted(Between(torch.sign, NOT_BINARY[name]))
    assert not on_bits(fast), fast.report


@pytest.mark.parametrize("bias", [False, True])
def test_scaled_signs_in_data(bias):
    """A trainer may have put ±s for each filter into the parameter itself."""
    conv = nn.Conv2d(12, 9, 3, bias=bias)
    scale = conv.weight.detach().abs().mean((1, 2, 3), keepdim=True)
    conv.weight.data = conv.weight.data.sign() * scale
    model = nn.Sequential(nn.BatchNorm2d(12), nn.Hardtanh()).append(Sign()).append(conv).eval()
    assert on_bits(converted(model))


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


@pytest.mark.parametrize("call", ["linear", "module", "matmul", "@", "addmm", "mm"])
def test_linear(call):
    """Products of rows, by every name they have."""
    weight, bias = torch.randn(5, 40).sign(), torch.randn(5)
    layer = nn.Linear(40, 5)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    calls = {
        "linear": lambda x: F.linear(x, weight, bias),
        "module": layer,
        "matmul": lambda x: torch.matmul(x, weight.t()) + bias,
        "@": lambda x: x @ weight.T + bias,
        "addmm": lambda x: torch.addmm(bias, x, weight.t()),
        "mm": lambda x: torch.mm(x, weight.t()).add_(bias),
    }

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return calls[call](torch.sign(x))

    x = torch.randn(3, 40)
    fast = bnn_ext.convert(Model().eval(), x)
    assert fast.report.verification.equal
    assert on_bits(fast), fast.report


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: F.pad(x.sign(), (1, 1, 1, 1)),
        lambda x: F.pad(x.sign(), (2, 2, 1, 1), value=-1.0),
        lambda x: F.pad(x.sign(), (1, 1, 1, 1), value=1.0),
        lambda x: F.pad(x, (1, 1, 1, 1), value=-3.0).sign(),
        lambda x: F.pad(x, (1, 1, 1, 1)).sign(),
        lambda x: F.pad(x.sign(), (1, 2, 0, 1)),
        lambda x: F.pad(x.sign(), (1, 1, 1, 1), value=0.5),
        lambda x: F.pad(x.sign(), (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x.sign(), (-1, -1, 1, 1)),
    ],
)
def test_padding_of_signs(pad):
    """Zeros that are padded are not signs; the sign of what is padded is."""
    weight = torch.randn(7, 12, 3, 3).sign()

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(pad(x), weight)

    x = torch.randn(3, 12, 6, 5)
    x[0, 0, 0] = 0.0
    with torch.no_grad():
        model = Model().eval()
        fast = bnn_ext.convert(model, torch.randn(3, 12, 6, 5))
        x = torch.randn(2, 12, 6, 5)
        assert torch.equal(fast(x), model(x))
