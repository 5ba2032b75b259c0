"""Real 1x1 convolutions inside converted networks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, randomize
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.packed import is_channels_last
from bnn_ext.nn.pointwise import PointwiseConv2d


class Block(nn.Module):
    """A binary convolution that halves the map, and a real one around it."""

    def __init__(self, channels: int, out: int, **arguments: object) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.shortcut = nn.Conv2d(channels, out, 1, **arguments)
        # In whole numbers, and averages of four of them, sums are exact in any order.
        self.shortcut.weight.data.mul_(10).round_()
        if self.shortcut.bias is not None:
            self.shortcut.bias.data.mul_(10).round_()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(self.pool(x))


def residual(**arguments: object) -> nn.Module:
    first = bnn.BinaryConv2d(24, 24, 1, bias=False)
    return nn.Sequential(first, Block(24, 40, **arguments), Block(40, 33, bias=False)).eval()


def whole_numbers(batch: int = 2, height: int = 12, width: int = 20) -> Tensor:
    return torch.randint(-9, 10, (batch, 24, height, width)).float()


def steps(fast: PackedNetwork) -> list[PointwiseConv2d]:
    return [step for step in fast.steps if isinstance(step, PointwiseConv2d)]


@pytest.mark.parametrize("arguments", [{}, {"bias": False}], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_shortcuts_run_between_our_operators(memory, arguments):
    model = residual(**arguments).to(memory_format=memory)
    fast = bnn_ext.convert(model, whole_numbers().contiguous(memory_format=memory))
    assert len(steps(fast)) == 2
    assert len(fast._plan) == 2  # a sequence, and the memory format of the output
    assert fast.rounds
    for size in ((2, 12, 20), (1, 12, 20), (5, 8, 4)):
        x = whole_numbers(*size).contiguous(memory_format=memory)
        assert torch.equal(fast(x), model(x))
        assert torch.equal(bnn_ext.to_float(fast)(x), model(x))
    rows = [row for row in fast.report.layers if row.name.endswith("shortcut")]
    assert [row.status for row in rows] == ["left"] * 2
    assert all(row.bytes_after == row.bytes_before > 0 for row in rows)


@torch.no_grad()
def test_batch_norm_goes_into_the_weight():
    model = nn.Sequential(
        nn.Conv2d(24, 40, 1), nn.BatchNorm2d(40), bnn.BinaryConv2d(40, 8, 3, bias=False)
    ).eval()
    fast = bnn_ext.convert(model, whole_numbers())
    kinds = [type(step).__name__ for step in fast.steps]
    assert kinds == ["PointwiseConv2d", "Pack", "PackedConv2d", "ToFormat"]
    assert fast.report.layers[1].reason == "in the weight of 0"


@pytest.mark.parametrize(
    "arguments",
    [{"stride": 2}, {"padding": 1}, {"groups": 2}, {"kernel_size": (1, 3)}],
    ids=str,
)
@torch.no_grad()
def test_other_convolutions_stay_calls_of_torch(arguments):
    layer = nn.Conv2d(24, 40, **({"kernel_size": 1} | arguments))
    model = nn.Sequential(layer, bnn.BinaryConv2d(40, 8, 3, bias=False)).eval()
    fast = bnn_ext.convert(model, whole_numbers())
    assert not steps(fast)
    transposed = nn.ConvTranspose2d(24, 40, 1)
    model = nn.Sequential(transposed, bnn.BinaryConv2d(40, 8, 3, bias=False)).eval()
    assert not steps(bnn_ext.convert(model, whole_numbers()))


class OwnWeight(nn.Module):
    """A convolution with a weight that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.sign(), x[:1, :, :1, :1].expand(24, -1, -1, -1))


@torch.no_grad()
def test_what_torch_has_to_sum():
    model, x = residual(), torch.randn(2, 24, 12, 20)
    fast = bnn_ext.convert(model, x, real_layers="torch")
    assert not steps(fast)
    assert torch.equal(fast(x), model(x))
    model = OwnWeight().eval()
    fast = bnn_ext.convert(model, x)
    assert not steps(fast)
    assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype):
    model, x = Block(24, 40).eval().to(dtype), whole_numbers().to(dtype)
    fast = bnn_ext.convert(model, x)
    assert len(steps(fast)) == 1
    # The shortcut's sums, below 1024, may be rounded before or after the bias: a last place of it.
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1024 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_the_layout_of_the_weight_is_kept(tmp_path):
    fast = bnn_ext.convert(residual(), x := whole_numbers())
    expected = fast(x)
    bnn_ext.save(fast, tmp_path / "model.bnn")
    for other in (bnn_ext.load(tmp_path / "model.bnn"), copy.deepcopy(fast)):
        assert [step.weight.stride() for step in steps(other)] == [(1, 40), (1, 33)]
        assert torch.equal(other(x), expected)
    fast.load_state_dict(bnn_ext.convert(residual(), x).state_dict())
    assert [step.weight.stride() for step in steps(fast)] == [(1, 40), (1, 33)]
    assert not torch.equal(fast(x), expected)


@torch.no_grad()
def test_alone():
    layer, x = nn.Conv2d(24, 40, 1), torch.randint(-9, 10, (2, 24, 3, 5)).float()
    for parameter in layer.parameters():  # of whole numbers sums are exact in any order
        parameter.data.mul_(100).round_()
    ours = PointwiseConv2d(layer.weight.detach().flatten(1), layer.bias.detach())
    assert is_channels_last(ours(x))
    assert torch.equal(ours(x), layer(x))


@pytest.mark.parametrize("name", ["birealnet", "xnornet"])
@torch.no_grad()
def test_published_networks(name):
    network = NETWORKS[name]
    x = network.inputs(2)
    model = randomize(network.make(), x, seed=1)
    assert steps(bnn_ext.convert(model, x, verify=False))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^weight must be \[out, in\] and real, found .*float32 "):
        PointwiseConv2d(torch.zeros(3, 4, 1, 1))
    with pytest.raises(ValueError, match="^weight must be .*, found torch.int32"):
        PointwiseConv2d(torch.zeros(3, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^bias must be .*\[3\] like .*, found .* \(4,\)"):
        PointwiseConv2d(torch.zeros(3, 4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"^bias must be .*float32 .*, found torch.int8"):
        PointwiseConv2d(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int8))
