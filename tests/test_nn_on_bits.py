"""Training on packed bits: the float forward's values, bit for bit, and its gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bnn_ext import models, quantizers
from bnn_ext import nn as bnn
from bnn_ext._extension import cpu_capability
from bnn_ext.nn import on_bits
from bnn_ext.ops import gradients

Make = Callable[[str | None], Any]
QUANTIZERS = ("ste_sign", "swish_sign", "stochastic_sign", "magnitude_aware_sign", "xnor_sign")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The products that ran on packed bits."""
    return counted(monkeypatch, on_bits, "linear", "conv2d")


@pytest.fixture
def backward_calls(monkeypatch) -> list[str]:
    """The gradients that came from packed bits."""
    return counted(monkeypatch, gradients, "linear_input", "conv2d_input", "conv2d_weight")


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> list[str]:
    """Grows by the name of a function of the module with each call of it."""
    found: list[str] = []
    for name in names:
        function = getattr(module, name)

        def counting(*args: Any, name: str = name, function: Any = function) -> Tensor:
            found.append(name)
            return function(*args)

        monkeypatch.setattr(module, name, counting)
    return found


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
                shape[-1],
                37,
                bias=bias,
                weight_quantizer=quantizer,
                forward=forward,
                backward="float",
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
                    backward="float",
                )

            assert_same(make, torch.randn(size).contiguous(memory_format=memory_format))
    assert calls == 4 * ["conv2d"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((33, 8, 3, 1, 1), ["conv2d_input", "conv2d_weight"]),
        ((16, 16, (3, 1), 1, (2, 0), (2, 1), 4), ["conv2d_input", "conv2d_weight"]),
        ((32, 64, 3, 2, 1), ["conv2d_weight"]),
        ((5, 6, 1, 1, 1), ["conv2d_weight"]),  # nothing of the map meets the border's outputs
    ],
)
def test_packed_backward_of_conv2d(level, backward_calls, arguments, expected, memory_format):
    x = torch.randn(3, arguments[0], 9, 11).contiguous(memory_format=memory_format)
    for quantizer in ("ste_sign", "xnor_sign"):
        backward_calls.clear()
        layer = bnn.BinaryConv2d(
            *arguments, weight_quantizer=quantizer, forward="packed", backward="packed"
        ).to(memory_format=memory_format)
        assert_close_gradients(layer, x)
        assert backward_calls == expected


@pytest.mark.parametrize("shape", [(64, 100), (3, 4, 65)])
def test_packed_backward_of_linear(level, backward_calls, shape):
    layer = bnn.BinaryLinear(shape[-1], 37, forward="packed", backward="packed")
    assert_close_gradients(layer, torch.randn(shape))
    assert backward_calls == ["linear_input"]


def assert_close_gradients(layer: nn.Module, x: Tensor) -> None:
    found = results(layer, x)
    layer.training_backward = "float"
    for name, expected in results(layer, x).items():
        assert found[name].stride() == expected.stride(), name
        # Two orders of summing some thousand numbers of size 1, at most.
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found["out"], results(layer, x)["out"])


def test_packed_backward_gives_what_is_needed_alone(backward_calls):
    layer = bnn.BinaryConv2d(8, 8, 3, padding=1, forward="packed", backward="packed")
    layer(torch.randn(2, 8, 4, 4)).sum().backward()
    assert backward_calls == ["conv2d_weight"]
    layer.requires_grad_(False)
    layer(torch.randn(2, 8, 4, 4, requires_grad=True)).sum().backward()
    assert backward_calls == ["conv2d_weight", "conv2d_input"]


def test_packed_backward_where_it_is_faster(level, backward_calls):
    fast_level = level not in ("generic", "popcnt")
    x = torch.randn(8, 128, 16, 16, requires_grad=True)
    conv = bnn.BinaryConv2d(128, 128, 3, padding=1)
    conv(x).sum().backward()
    conv(x[:7]).sum().backward()
    assert backward_calls == ["conv2d_input", "conv2d_weight"] * fast_level
    conv.training_backward = "float"
    conv(x).sum().backward()
    tiny = bnn.BinaryConv2d(8, 8, 3, padding=1, forward="packed")
    tiny(torch.randn(2, 8, 4, 4, requires_grad=True)).sum().backward()
    assert len(backward_calls) == 2 * fast_level


def test_packed_backward_gives_way_to_whoever_watches(backward_calls):
    layer = bnn.BinaryConv2d(8, 8, 3, padding=1, forward="packed", backward="packed")
    out = layer(torch.randn(2, 8, 4, 4, requires_grad=True))
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * out.numel() * 8 * 9 * 2
    assert backward_calls == []


@pytest.mark.parametrize("backward", [None, "packed"])
def test_second_derivatives(backward):
    x = torch.randn(3, 4)
    found = []
    for forward in ("packed", "float"):
        torch.manual_seed(1)
        layer = bnn.BinaryLinear(4, 2, input_quantizer="swish_sign", forward=forward)
        layer.training_backward = backward
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
    fast_level = level not in ("generic", "popcnt")
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
        {"input_quantizer": "xnor_sign"},  # ±s
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
    for one, name, choice in ((model, "backward", "float"), (other, "forward", "float")):
        for layer in one.modules():
            if isinstance(layer, (bnn.BinaryLinear, bnn.BinaryConv2d)):
                setattr(layer, f"training_{name}", choice)
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


@pytest.mark.parametrize("quantizer", ["ste_sign", "stochastic_sign", "xnor_sign"])
def test_packed_evaluation_gives_the_same_bits(quantizer, calls):
    model = models.vgg_small_binary(width=0.5, hidden=(1024,))
    bnn.set_weight_quantizer(model, quantizer)
    x = torch.randn(32, 3, 32, 32)
    model(x)  # statistics of BatchNorm
    calls.clear()
    expected = model.eval()(x)
    assert calls == []
    for context in (torch.no_grad, torch.inference_mode):
        with context(), bnn.packed_evaluation():
            assert torch.equal(model(x), expected)
        fast = cpu_capability() not in ("generic", "popcnt")
        assert ("conv2d" in calls and "linear" in calls) == fast
        calls.clear()
    with pytest.raises(KeyError), bnn.packed_evaluation():
        raise KeyError
    model(x)
    assert calls == []


def test_packed_evaluation_takes_layers_as_they_are(calls):
    """What cannot be packed is an error in training only: weights may be real for an evaluation."""
    layer = bnn.BinaryLinear(4, 2, forward="packed").eval()
    layer.weight_quantizer = None
    x = torch.randn(3, 4)
    with bnn.packed_evaluation():
        assert torch.equal(layer(x), F.linear(quantizers.ste_sign(x), layer.weight) + layer.bias)
    assert calls == []


def test_errors_and_repr():
    for make in (bnn.BinaryLinear, lambda *a, **k: bnn.BinaryConv2d(*a, 3, **k)):
        with pytest.raises(ValueError, match="forward must be 'packed', 'float' or None.*'bits'"):
            make(4, 4, forward="bits")
        with pytest.raises(ValueError, match="backward must be 'packed', 'float' or None.*'bits'"):
            make(4, 4, backward="bits")
        with pytest.raises(ValueError, match="backward='packed' needs a packed forward"):
            make(4, 4, forward="float", backward="packed")
        assert repr(make(4, 4, forward="packed")).endswith(", forward='packed')")
        assert repr(make(4, 4, backward="float")).endswith(", backward='float')")
        assert "ward" not in repr(make(4, 4))
    for name in ("forward", "backward"):
        with pytest.raises(ValueError, match=f"{name} of BinaryConv1d must be 'float' or None"):
            bnn.BinaryConv1d(4, 4, 3, **{name: "packed"})
    layer = bnn.BinaryLinear(4, 4, weight_quantizer=None, forward="packed")
    with pytest.raises(ValueError, match="needs quantizers that give ±1.*None for the weight"):
        layer(torch.randn(2, 4))
    layer.eval()(torch.randn(2, 4))
    older = bnn.BinaryLinear(4, 4)
    del older.training_forward, older.training_backward  # as unpickled from before a choice
    older(torch.randn(2, 4))
