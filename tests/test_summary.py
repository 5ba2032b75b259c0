"""`summary`: parameters, bytes and multiply-accumulates of a small network, counted by hand."""

from __future__ import annotations

import pytest
import torch
from small_networks import SMALL, small
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import Summary

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(2, 3, 8, 8)


def small_model() -> nn.Sequential:
    return nn.Sequential(
        bnn.BinaryConv2d(3, 10, 3, padding=1, bias=False, input_quantizer=None),  # 10 @ 8x8
        nn.BatchNorm2d(10),
        nn.Hardtanh(),
        bnn.BinaryConv2d(10, 6, (3, 2), stride=2, groups=2),  # 6 @ 3x4
        nn.Flatten(),
        bnn.BinaryLinear(6 * 3 * 4, 5, weight_quantizer="magnitude_aware_sign"),
        nn.Linear(5, 4),
    ).eval()


# kind, 1-bit parameters, real parameters, bytes, 1-bit MACs, real MACs
BEFORE = [
    ("BinaryConv2d", 270, 0, 34, 0, 270 * 64),  # 270 bits = 33.75 bytes
    ("BatchNorm2d", 0, 20, 40 * 4 + 8, 0, 0),  # two statistics and a counter beside the parameters
    ("Hardtanh", 0, 0, 0, 0, 0),
    ("BinaryConv2d", 180, 6, 23 + 6 * 4, 180 * 12, 0),
    ("Flatten", 0, 0, 0, 0, 0),
    ("BinaryLinear", 360, 5, 45 + 5 * 4, 360, 0),
    ("Linear", 0, 24, 24 * 4, 0, 20),
]
AFTER = [
    ("RealInputConv2d", 270, 10, 10 * 9 * 4 + 10 * 4, 0, 270 * 64),  # a word for 3 channels
    ("PackedConv2d", 180, 6, 6 * 6 * 4 + 6 * 4, 180 * 12, 0),  # a word for 5 channels; thresholds
    ("PackedFlatten", 0, 0, 0, 0, 0),
    ("FusedLinear", 360, 10, 5 * 3 * 4 + 10 * 4, 360, 0),  # 3 words for 72; scale and bias
    ("linear.default", 0, 24, 24 * 4, 0, 20),
]


def rows(summary: Summary) -> list[tuple[object, ...]]:
    return [
        (
            layer.kind,
            layer.binary_parameters,
            layer.real_parameters,
            layer.bytes,
            layer.binary_macs,
            layer.real_macs,
        )
        for layer in summary.layers
    ]


def test_before_and_after_conversion():
    model = small_model()
    before = bnn_ext.summary(model, X)
    assert rows(before) == BEFORE
    assert [layer.name for layer in before.layers] == list("0123456")
    after = bnn_ext.summary(bnn_ext.convert(model, X), X)
    assert rows(after) == AFTER
    by_torch = bnn_ext.summary(bnn_ext.convert(model, X, real_layers="torch"), X)
    first = [
        ("ToFormat", 0, 0, 0, 0, 0),
        ("BinaryWeightConv2d", 270, 0, 10 * 9 * 4, 0, 270 * 64),
        ("Pack", 0, 10, 10 * 4, 0, 0),
    ]
    assert rows(by_torch) == [*first, *AFTER[1:]]
    names = [layer.name for layer in by_torch.layers]
    assert names == ["input.contiguous", "0", "3.pack", "3", "4", "5", "6"]
    for summary, expected in ((before, BEFORE), (after, AFTER)):
        sums = [sum(row[i] for row in expected) for i in range(1, 6)]
        assert sums == [
            summary.binary_parameters,
            summary.real_parameters,
            summary.bytes,
            summary.binary_macs,
            summary.real_macs,
        ]


@pytest.mark.parametrize("name", SMALL)
def test_conversion_keeps_the_products(name):
    model, images = small(name)
    before = bnn_ext.summary(model, images)
    assert before.binary_macs + before.real_macs > 0
    for real_layers in ("fused", "torch"):
        fast = bnn_ext.convert(model, images, real_layers=real_layers, verify=False)
        after = bnn_ext.summary(fast, images)
        assert (after.binary_macs, after.real_macs) == (before.binary_macs, before.real_macs)
        assert after.binary_parameters == before.binary_parameters


class Branches(nn.Module):
    """Steps, a shortcut and a concatenation behind binary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, bias=False)
        self.narrow = bnn.BinaryConv2d(8, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.wide = bnn.BinaryConv2d(13, 8, 3, padding=1, bias=False)
        self.classes = bnn.BinaryLinear(8, 4, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(left) + right
        y = torch.sign(torch.cat([self.norm(self.narrow(x)), x], 1))
        x = self.shortcut(x) + self.wide(y)
        return x, self.classes(x.mean((2, 3)))


def test_branches():
    model, inputs = Branches().eval(), (X, torch.randn(2, 8, 8, 8))
    fast = bnn_ext.convert(model, inputs)
    before, after = (bnn_ext.summary(network, inputs) for network in (model, fast))
    assert before.binary_macs == 5 * 72 * 64 + 8 * 117 * 64 + 32
    assert before.real_macs == (216 + 64) * 64
    assert (after.binary_macs, after.real_macs) == (before.binary_macs, before.real_macs)
    kinds = [layer.kind for layer in after.layers]
    assert kinds == [
        "ToFormat",
        "convolution.default",
        "Elementwise",
        "PackedConv2d",
        "Pack",
        "SelectChannels",
        "PointwiseConv2d",
        "FusedConv2d",
        "mean.dim",
        "Pack",
        "PackedLinear",
        "ToFormat",
    ]
    of = {layer.kind: row for layer, row in zip(after.layers, rows(after), strict=True)}
    assert of["convolution.default"] == ("convolution.default", 0, 224, 224 * 4, 0, 216 * 64)
    assert of["PointwiseConv2d"] == ("PointwiseConv2d", 0, 64, 64 * 4, 0, 64 * 64)
    assert of["SelectChannels"] == ("SelectChannels", 0, 0, 13 * 4, 0, 0)
    assert of["FusedConv2d"] == ("FusedConv2d", 936, 0, 8 * 9 * 4, 936 * 64, 0)


def test_network_inside_another_model():
    """A converted network is counted node by node wherever it is."""
    model, x = small_model(), X
    fast = bnn_ext.convert(model, x)
    summary = bnn_ext.summary(nn.Sequential(fast, nn.Linear(4, 3)), x)
    assert rows(summary) == [*AFTER, ("Linear", 0, 15, 15 * 4, 0, 12)]
    assert [layer.name for layer in summary.layers] == ["0.0", "0.3", "0.4", "0.5", "0.6", "1"]
    assert torch.equal(fast(x), model(x)), "it runs as before"
    assert "forward" not in vars(fast)


def test_products_of_a_sample_do_not_depend_on_the_batch():
    for batch in (0, 1, 7):
        assert rows(bnn_ext.summary(small_model(), X[:1].repeat(batch, 1, 1, 1))) == BEFORE


def test_without_inputs_products_are_unknown():
    summary = bnn_ext.summary(small_model())
    assert [row[:4] for row in rows(summary)] == [row[:4] for row in BEFORE]
    assert summary.binary_macs is None
    assert summary.real_macs is None
    assert summary.layers[1].real_macs == 0, "a layer without products has none"
    assert "?" in str(summary).splitlines()[2]


def test_text():
    text = str(bnn_ext.summary(small_model(), X)).splitlines()
    assert text[0].split("  ")[0] == "layer"
    assert text[2].split() == ["0", "BinaryConv2d", "270", "0", "34", "0", "17,280"]
    assert text[-1].split() == ["total", "810", "55", "410", "2,520", "17,300"]


def test_one_layer():
    layer = bnn.BinaryConv1d(4, 6, 3, bias=False)
    summary = bnn_ext.summary(layer, torch.randn(2, 4, 9))
    assert rows(summary) == [("BinaryConv1d", 72, 0, 9, 72 * 7, 0)]
    assert str(summary).splitlines()[2].startswith("(model)")


def test_real_weights_and_real_inputs():
    """A product is binary only if both factors are."""
    x = torch.randn(2, 8)
    for quantizers, binary_parameters, binary_macs in (
        ({}, 32, 32),
        ({"input_quantizer": None}, 32, 0),
        ({"weight_quantizer": None}, 0, 0),
    ):
        summary = bnn_ext.summary(bnn.BinaryLinear(8, 4, bias=False, **quantizers), x)
        assert summary.binary_parameters == binary_parameters
        assert summary.real_parameters == 32 - binary_parameters
        assert summary.bytes == (4 if binary_parameters else 4 * 32)
        assert summary.binary_macs == binary_macs
        assert summary.real_macs == 32 - binary_macs


def test_layers_that_run_more_than_once():
    """The parameters count once, the products each time; rows of a sequence count each."""
    layer = bnn.BinaryLinear(8, 8, bias=False)
    summary = bnn_ext.summary(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 3, 8))
    assert summary.binary_parameters == 64
    assert summary.binary_macs == 2 * 3 * 64


class Block(nn.Module):
    """Not a Sequential, with a parameter and a buffer of its own, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.zeros(10))
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shift.view(-1, 1, 1)


def test_any_module():
    summary = bnn_ext.summary(nn.Sequential(Block()), X)
    assert [(layer.name, layer.kind) for layer in summary.layers] == [
        ("0", "Block"),
        ("0.conv", "Conv2d"),
        ("0.unused", "Linear"),
    ]
    assert summary.real_parameters == 4 + 12 + 12
    assert summary.bytes == 4 * (4 + 10 + 12 + 12)
    assert summary.real_macs == 12 * 64


def test_half_precision():
    assert bnn_ext.summary(small_model().half()).bytes == 34 + 88 + 35 + 55 + 48


def test_model_stays_as_it_was():
    model = small_model().train()
    model[5].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    bnn_ext.summary(model, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_failing_model_keeps_no_hooks():
    model = small_model()
    with pytest.raises(RuntimeError):
        bnn_ext.summary(model, torch.randn(2, 5, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())
