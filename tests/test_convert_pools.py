"""Pools of real maps inside converted networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, randomize
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.packed import is_channels_last
from bnn_ext.nn.pooling import RealAvgPool2d, RealMaxPool2d, RealPool
from bnn_ext.nn.torch_calls import TorchCall

KINDS = ["RealMaxPool2d", "RealAvgPool2d", "RealAvgPool2d"]  # of the residual network
POOLS = ("max_pool2d.default", "avg_pool2d.default")


class Block(nn.Module):
    """A binary convolution that halves the map, and averages around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.pool(x)


def residual() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1, bias=False),
        nn.BatchNorm2d(40),
        nn.MaxPool2d(3, 2, 1),
        Block(40),
        Block(40),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 5),
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
    return model.eval()


def pools(fast: PackedNetwork) -> list[str]:
    """The kinds of its pools, in running order."""
    kinds = []
    for step in fast.steps:
        if isinstance(step, RealPool):
            kinds.append(type(step).__name__)
        elif isinstance(step, TorchCall) and step.operator in POOLS:
            kinds.append(step.operator)
    return kinds


def inputs(memory_format: torch.memory_format) -> Tensor:
    return torch.randn(2, 3, 19, 17).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_residual_network_pools_by_our_kernels(memory):
    model, x = residual().to(memory_format=memory), inputs(memory)
    fast = bnn_ext.convert(model, x)
    assert pools(fast) == [*KINDS, "RealGlobalAvgPool2d"]
    assert fast.report.verification.different_predictions == 0
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)  # sums of another order
    assert [r.status for r in fast.report.layers if "Pool2d" in r.kind] == ["left"] * 4


@torch.no_grad()
def test_the_same_floats_where_the_model_is_in_channels_last():
    model, x = residual().to(memory_format=torch.channels_last), inputs(torch.channels_last)
    fast = bnn_ext.convert(model, x, real_layers="torch")
    assert pools(fast) == KINDS
    assert torch.equal(fast(x), model(x))


@torch.no_grad()
def test_the_same_floats_where_the_model_is_contiguous():
    """There torch's averages may differ in the sign of zeros, so torch computes them."""
    model, x = residual(), inputs(torch.contiguous_format)
    fast = bnn_ext.convert(model, x, real_layers="torch")
    assert pools(fast) == ["RealMaxPool2d", POOLS[1], POOLS[1]]
    assert torch.equal(fast(x), model(x))


@torch.no_grad()
def test_a_max_pool_of_our_maps_in_a_contiguous_model():
    model = nn.Sequential(
        bnn.BinaryConv2d(8, 33, 3, bias=False), nn.PReLU(33), nn.MaxPool2d(2), nn.Tanh()
    ).eval()
    x = torch.randn(2, 8, 11, 12)
    fast = bnn_ext.convert(model, x, real_layers="torch")
    assert pools(fast) == ["RealMaxPool2d"]
    assert torch.equal(fast(x), model(x))


class Spellings(nn.Module):
    """Windows of one number and of two, with and without what has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(8, 33, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        return (
            F.max_pool2d(x, 2),
            F.max_pool2d(x, (3,), (1,), (1,)),
            F.max_pool2d(x, (3, 2), dilation=(1, 2), ceil_mode=True),
            F.avg_pool2d(x, 2),
            F.avg_pool2d(x, (3, 2), (2, 3), (1, 0), divisor_override=5),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(x, 2, divisor_override=-1),
        )


@torch.no_grad()
def test_every_spelling_of_a_window():
    model, x = Spellings().eval(), torch.randn(2, 8, 11, 12)
    fast = bnn_ext.convert(model, x)
    assert pools(fast) == ["RealMaxPool2d"] * 3 + ["RealAvgPool2d"] * 3 + [POOLS[1]]
    for found, expected in zip(fast(x), model(x), strict=True):
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)


@torch.no_grad()
def test_maps_of_other_dtypes_and_formats_stay_with_torch():
    halves = nn.Sequential(bnn.BinaryConv2d(8, 33, 3), nn.AvgPool2d(2)).half().eval()
    assert pools(bnn_ext.convert(halves, torch.randn(2, 8, 9, 9).half())) == [POOLS[1]]
    first = nn.Sequential(nn.AvgPool2d(2), bnn.BinaryConv2d(8, 33, 3)).eval()
    assert pools(bnn_ext.convert(first, torch.randn(2, 8, 9, 9))) == [POOLS[1]]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@torch.no_grad()
def test_what_our_kernels_pool_lies_in_channels_last(name, real_layers):
    """So no pool copies its map first."""
    network = NETWORKS[name]
    x = network.inputs(2)
    model = randomize(network.make(), x, seed=1)
    fast = bnn_ext.convert(model, x, verify=False, real_layers=real_layers)
    values = dict(zip(fast.inputs, x, strict=True)) | dict(fast.values(*x))
    for node in fast.nodes:
        if isinstance(node.module, RealPool):
            assert is_channels_last(values[node.inputs[0]]), node.name
    if real_layers == "fused" and name in ("birealnet", "bnew"):
        assert "RealMaxPool2d" in pools(fast)


class Means(nn.Module):
    """Of which only the first two keep a map of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(8, 40, 3, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        means = [F.adaptive_avg_pool2d(x, 1), x.mean((3, -2), keepdim=True), x.mean((2, 3))]
        means += [x.mean((1, 2), keepdim=True), x.mean(3, keepdim=True)]
        return [*means, x.mean((2, 3), keepdim=True, dtype=torch.float64)]


@torch.no_grad()
def test_means_of_whole_maps():
    model, x = Means().eval(), torch.randn(2, 8, 6, 10)  # 32 pixels: the quotient is exact
    fast = bnn_ext.convert(model, x)
    assert pools(fast) == ["RealGlobalAvgPool2d"] * 2
    assert pools(bnn_ext.convert(model, x, real_layers="torch")) == []
    for other in (x, torch.randn(1, 8, 10, 18)):
        for found in (fast(other), bnn_ext.to_float(fast)(other)):
            for a, b in zip(found, model(other), strict=True):
                assert torch.equal(a, b)


def test_wrong_attributes():
    with pytest.raises(TypeError, match="^ceil_mode must be a bool"):
        RealMaxPool2d((2, 2), (2, 2), ceil_mode=1)
    with pytest.raises(TypeError, match="^count_include_pad must be a bool"):
        RealAvgPool2d((2, 2), (2, 2), count_include_pad=None)
    with pytest.raises(ValueError, match="^padding must be at most half"):
        RealAvgPool2d((2, 2), (2, 2), padding=(2, 0))
    with pytest.raises(ValueError, match="^divisor_override must be at least 1"):
        RealAvgPool2d((2, 2), (2, 2), divisor_override=0)
