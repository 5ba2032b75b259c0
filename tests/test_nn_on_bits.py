"""Training on packed bits: the values and the gradients of the float forward, bit for bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bnn_ext import models, quantizers
from bnn_ext import nn as bnn
from bnn_ext.nn import on_bits

Make = Callable[[str | None], Any]
QUANTIZERS = ("ste_sign", "swish_sign", "stochastic_sign", "magnitude_aware_sign", "xnor_sign")


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[str]]:
    """The products that ran on packed bits."""
    found: list[str] = []
    for name in ("linear", "conv2d"):
        function = getattr(on_bits, name)

        def counting(*args: Any, name: str = name, function: Any = function) -> Tensor:
            found.append(name)
            return function(*args)

        monkeypatch.setattr(on_bits, name, counting)
    yield found


def results(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(5)  # of stochastic signs
    out = layer(x)
    torch.manual_seed(6)
    out.backward(torch.randn(out.shape))
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"out": out.detach(), "input": x.grad, **grads}


def assert_same(make: Make, x: Tensor) -> None:
    layers = []
    for forward in ("packed", "float"):
        torch.manual_seed(3)
        layers.append(make(forward))
    if x.dim() == 4:
        for layer in layers:
            layer.to(memory_format=torch.channels_last if x.stride(1) == 1 else None)
    found, expected = (results(layer, x) for layer in layers)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].stride() == value.stride(), name


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("shape", [(1, 5), (7, 33), (64, 100), (3, 4, 65), (2, 1, 3, 32)])
def test_linear(level, calls, shape, quantizer):
    for bias in (True, False):

        def make(forward: str | None, bias: bool = bias) -> nn.Module:
            return bnn.BinaryLinear(
                shape[-1], 37, bias=bias, weight_quantizer=quantizer, forward=forward
            )

        assert_same(make, torch.randn(shape))
        assert_same(make, torch.randn(shape[::-1]).permute(*reversed(range(len(shape)))))
    assert calls == 4 * ["linear"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("arguments", "pad_value"),
    [
        ((3, 5, 3, 1, 1), 0),
        ((32, 64, 3, 2, 1), 0),
        ((33, 8, 1), 0),
        ((16, 16, 3, 1, 2, 2, 4), 0),
        ((8, 8, (3, 1), 1, (1, 0)), 1),
        ((8, 8, (2, 3), (1, 2), (0, 1)), -1),
        ((1, 4, 3), 0),
        ((64, 64, 5, 1, 2), 0),
    ],
)
def test_conv2d(level, calls, arguments, pad_value, memory_format):
    for quantizer in ("ste_sign", "xnor_sign"):
        for size in ((2, arguments[0], 9, 11), (1, arguments[0], 5, 6)):

            def make(forward: str | None, quantizer: str = quantizer) -> nn.Module:
                return bnn.BinaryConv2d(
                    *arguments,
                    pad_value=pad_value,
                    weight_quantizer=quantizer,
                    input_quantizer="approx_sign",
                    forward=forward,
                )

            assert_same(make, torch.randn(size).contiguous(memory_format=memory_format))
    assert calls == 4 * ["conv2d"]


def test_second_derivatives():
    x = torch.randn(3, 4)
    found = []
    for forward in ("packed", "float"):
        torch.manual_seed(1)
        layer = bnn.BinaryLinear(4, 2, input_quantizer="swish_sign", forward=forward)
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), layer.weight))
    assert torch.equal(*(grad for (grad,) in found))
    assert found[0][0].count_nonzero() > 0


def wide(**settings: Any) -> bnn.BinaryLinear:
    return bnn.BinaryLinear(1024, 1024, **settings)


ROWS = (64, 1024)


def test_automatic_where_it_is_faster(level, calls):
    layer = wide()
    x = torch.randn(ROWS)
    out = layer(x)
    fast_level = level in ("avx2", "avx512", "avx512_vpopcnt")
    assert calls == ["linear"] * fast_level
    layer.training_forward = "float"
    assert torch.equal(layer(x), out)
    conv = bnn.BinaryConv2d(128, 128, 3, padding=1)
    conv(torch.randn(4, 128, 16, 16))
    assert calls == ["linear", "conv2d"] * fast_level
    conv(torch.randn(128, 16, 16))  # without a batch
    conv(torch.randn(1, 128, 4, 4))
    layer(torch.randn(1024))
    layer(torch.randn(2, 1024))  # too little to pay for packing a million weights
    bnn.BinaryConv2d(256, 256, 3, padding=1, groups=256)(torch.randn(4, 256, 32, 32))
    assert calls == ["linear", "conv2d"] * fast_level


def test_floats_wherever_bits_cannot_stand_in(calls):
    """Eval mode, other dtypes, values that are not ±1, and whoever watches the operators."""
    x = torch.randn(ROWS)
    for settings in (
        {"input_quantizer": None},
        {"weight_quantizer": None},
        {"input_quantizer": "dropout_sign"},
        {"weight_quantizer": quantizers.TanhSign()},
        {"weight_quantizer": torch.tanh},
        {"forward": "float"},
    ):
        wide(**settings)(x)
    for forward in ("packed", None):
        layer = wide(forward=forward)
        layer.eval()(x)
        layer.train()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 64 * 1024 * 1024
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch advises against it
            torch.jit.trace(layer, x, check_trace=False)
        layer(x[:0])
        layer.double()(x.double())
        layer.to("meta")(x.to("meta"))
        bnn.BinaryConv2d(16, 16, 3, padding="same", forward=forward)(torch.randn(9, 16, 32, 32))
    assert calls == []


def test_compiled_layers_compile_without_graph_break(calls):
    layer = wide(forward="packed")
    x = torch.randn(ROWS)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer.eval()(x))
    assert calls == []


@pytest.mark.parametrize("quantizer", [None, "ste_sign", "xnor_sign"])
def test_training_runs_are_the_same(quantizer, calls):
    """Whole networks, with BatchNorm, pools, Adam and clipping, some layers on bits."""
    torch.manual_seed(0)
    model = models.vgg_small_binary(width=0.5, hidden=(1024,))
    if quantizer is not None:
        bnn.set_weight_quantizer(model, quantizer)
    other = copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, (bnn.BinaryLinear, bnn.BinaryConv2d)):
            layer.training_forward = "float"
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.01) for one in (model, other)]
    for one, optimizer in zip((model, other), optimizers, strict=True):
        if quantizer is not None:
            bnn.clip_weights(optimizer, one)
    for _ in range(2):
        images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
        losses = []
        for one, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(one(images), labels))
            losses[-1].backward()
            optimizer.step()
        assert torch.equal(*losses)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_errors_and_repr():
    for make in (bnn.BinaryLinear, lambda *a, **k: bnn.BinaryConv2d(*a, 3, **k)):
        with pytest.raises(ValueError, match="forward must be 'packed', 'float' or None.*'bits'"):
            make(4, 4, forward="bits")
        assert repr(make(4, 4, forward="packed")).endswith(", forward='packed')")
        assert "forward" not in repr(make(4, 4))
    with pytest.raises(ValueError, match="of BinaryConv1d must be 'float' or None, found 'packed'"):
        bnn.BinaryConv1d(4, 4, 3, forward="packed")
    layer = bnn.BinaryLinear(4, 4, weight_quantizer=None, forward="packed")
    with pytest.raises(ValueError, match="needs quantizers that give ±1.*None for the weight"):
        layer(torch.randn(2, 4))
    layer.eval()(torch.randn(2, 4))
    older = bnn.BinaryLinear(4, 4)
    del older.training_forward  # as unpickled from before there was a choice
    older(torch.randn(2, 4))
