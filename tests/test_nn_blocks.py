"""Learned shifts, scales and slopes, and residual blocks, against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnn_ext import nn as bnn
from bnn_ext import quantizers

SHAPES = [(5, 3), (5, 3, 4), (2, 3, 4, 6), (2, 3, 4, 2, 2), (0, 3, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_and_scale_are_per_channel(shape):
    x = torch.randn(shape)
    shift, scale = bnn.LearnableBias(3), bnn.LearnableScale(3)
    assert torch.equal(shift(x), x)  # nothing at first
    assert torch.equal(scale(x), x)
    values = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        shift.bias.copy_(values)
        scale.scale.copy_(values)
    last = x.transpose(1, -1)  # channels last, where plain broadcasting adds them
    assert torch.equal(shift(x), (last + values).transpose(1, -1))
    assert torch.equal(scale(x), (last * values).transpose(1, -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_rprelu_is_its_formula(shape):
    module = bnn.RPReLU(3)
    first, prelu, second = module
    nn.init.normal_(first.bias)
    nn.init.normal_(prelu.weight)
    nn.init.normal_(second.bias)
    x = torch.randn(shape)
    last = x.transpose(1, -1) + first.bias
    bent = torch.where(last > 0, last, prelu.weight * last) + second.bias
    assert torch.equal(module(x), bent.transpose(1, -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_rsign_moves_the_threshold(shape):
    module = bnn.RSign(3)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([0.0, 1.0, -0.5]))
    x = torch.randn(shape).mul(2).round().div(2)  # often at a threshold exactly
    thresholds = torch.tensor([0.0, -1.0, 0.5])
    expected = (x.transpose(1, -1) >= thresholds).float() * 2 - 1
    assert torch.equal(module(x), expected.transpose(1, -1))


def test_gradient_of_rsign():
    module = bnn.RSign(2, "approx_sign")
    with torch.no_grad():
        module.bias.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[0.25, 0.25], [-0.75, -2.0]], requires_grad=True)
    module(x).sum().backward()
    # 2 - 2|x + bias| inside of (-1, 1).
    assert torch.equal(x.grad, torch.tensor([[1.5, 0.5], [0.5, 0.0]]))
    assert torch.equal(module.bias.grad, torch.tensor([2.0, 0.5]))


def test_rsign_draws_in_training_only():
    module = bnn.RSign(1, "stochastic_sign")
    x = torch.zeros(1000, 1)
    assert set(module(x).unique().tolist()) == {-1, 1}
    assert torch.equal(module.eval()(x), torch.ones(1000, 1))


def test_rsign_needs_a_quantizer():
    with pytest.raises(ValueError, match="quantizer must be one of ste_sign.*found 'sing'"):
        bnn.RSign(3, "sing")
    with pytest.raises(TypeError, match="quantizer must be a name or a callable"):
        bnn.RSign(3, 1)


@pytest.mark.parametrize(
    "make", [bnn.LearnableBias, bnn.LearnableScale, bnn.RSign, bnn.RPReLU], ids=lambda m: m.__name__
)
def test_device_and_dtype(make):
    module = make(3, device="meta", dtype=torch.bfloat16)
    for parameter in module.parameters():
        assert parameter.device.type == "meta" and parameter.dtype == torch.bfloat16
        assert parameter.shape == (3,)


def test_repr():
    assert repr(bnn.LearnableBias(3)) == "LearnableBias(3)"
    assert repr(bnn.LearnableScale(4)) == "LearnableScale(4)"


def test_residual_adds_and_activates():
    branch, shortcut = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(2, 4)
    block = bnn.Residual(branch, shortcut, nn.ReLU())
    assert torch.equal(block(x), F.relu(branch(x) + shortcut(x)))
    square = nn.Linear(4, 4)
    assert torch.equal(bnn.Residual(square)(x), square(x) + x)


@pytest.mark.parametrize("mode", ["fx", "compile"])
def test_blocks_can_be_traced(mode):
    branch = nn.Sequential(bnn.LearnableBias(3), bnn.BinaryConv2d(3, 3, 3, padding=1))
    block = bnn.Residual(branch, bnn.LearnableScale(3), bnn.RPReLU(3))
    x = torch.randn(2, 3, 5, 5)
    if mode == "compile":
        torch._dynamo.reset()
        traced = torch.compile(block, backend="aot_eager", fullgraph=True)
    else:
        traced = LeafTracer().trace_module(block)
    assert torch.equal(traced(x), block(x))


class LeafTracer(torch.fx.Tracer):
    """Leaves this package's layers whole, as torch.fx does torch.nn's."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        own = (bnn.BinaryConv2d, bnn.LearnableBias, bnn.LearnableScale)
        return isinstance(module, own) or super().is_leaf_module(module, name)

    def trace_module(self, module: nn.Module) -> torch.fx.GraphModule:
        return torch.fx.GraphModule(module, self.trace(module))


# --- dropout behind the sign ----------------------------------------------------------------------


def test_dropout_sign_drops_in_training_only():
    layer = bnn.BinaryLinear(1000, 1, bias=False, input_quantizer="dropout_sign")
    nn.init.ones_(layer.weight)
    x = torch.ones(50, 1000)
    kept = layer(x) / 2  # each kept sign counts 2
    assert kept.std() > 0 and abs(kept.mean() - 500) < 5 * (1000 * 0.25 / 50) ** 0.5
    assert torch.equal(layer.eval()(x), torch.full((50, 1), 1000.0))
    assert quantizers.is_sign(quantizers.dropout_sign)


def test_values_and_gradient_of_dropout_sign():
    x = torch.linspace(-2, 2, 4001).requires_grad_()
    out = quantizers.dropout_sign(x, 0.75)
    dropped = out == 0
    assert 0.7 < dropped.float().mean() < 0.8
    signs = torch.where(x >= 0, 1.0, -1.0)
    assert torch.equal(out[~dropped], 4 * signs[~dropped])
    out.sum().backward()
    expected = torch.where(dropped | (x.abs() > 1), 0.0, 4.0)
    assert torch.equal(x.grad, expected)
