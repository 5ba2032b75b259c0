"""The report of `convert`, as people read it and as data."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, randomize
from small_models import MAP, two_convs, with_statistics
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import Report

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(report: Report) -> dict[str, tuple[str, str]]:
    return {layer.name: (layer.status, layer.reason) for layer in report.layers}


def test_report_reads_well():
    model = two_convs(nn.BatchNorm2d(33), nn.MaxPool2d(2), nn.Dropout())
    fast = bnn_ext.convert(model, torch.randn(MAP))
    lines = str(fast.report).splitlines()
    assert " ".join(lines[0].split()) == "layer kind status bytes before after MACs why"
    assert len(lines) == 2 + 4 + 1 + 1  # dropout computes nothing
    assert lines[2].split()[:6] == ["0", "BinaryConv2d", "fused", "3,696", "1,328", "98,010"]
    assert lines[3].endswith("in the threshold of 0")
    assert lines[5].endswith("gives floats: they are the network's output")
    assert lines[6].split() == ["total", "10,184", "1,708", "111,375"]
    assert lines[7].startswith("verified: all ")


def test_bytes_are_those_of_the_network():
    for name in ("binarynet_old_resnet", "shufflenet", "two_heads"):
        network = NETWORKS[name]
        model = randomize(network.make(), network.inputs(4), seed=1)
        for real_layers in ("fused", "torch"):
            fast = bnn_ext.convert(model, network.inputs(2), real_layers=real_layers, verify=False)
            size = sum(x.nbytes for step in fast.steps for x in step.tensors().values())
            assert fast.report.bytes_after == size


def test_macs_of_the_report():
    """Multiply-accumulates of one sample: outputs times weights of each."""
    model = nn.Sequential(
        bnn.BinaryConv2d(4, 6, (3, 2), stride=2, groups=2), nn.Flatten(), bnn.BinaryLinear(96, 5)
    ).eval()
    fast = bnn_ext.convert(model, torch.randn(3, 4, 9, 8))  # 4x4 maps
    assert [line.macs for line in fast.report.layers] == [6 * 4 * 4 * (2 * 3 * 2), 0, 5 * 96]


def test_as_data():
    report = bnn_ext.convert(two_convs(nn.MaxPool2d(2)), torch.randn(MAP)).report
    report.notes = ["a note"]
    again = Report.from_dict(report.to_dict())
    assert again.layers == report.layers
    assert again.notes == report.notes
    assert again.verification is None
    assert str(report) == f"{again}\n{report.verification}"
    assert str(again).splitlines()[-1] == "a note"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_after": "many"}, "bytes_after must be .*int.*, found 'many'"),
        ({"notes": "none"}, "notes must be a list of strings, found 'none'"),
    ],
)
def test_refuses_other_data(change, message):
    data = bnn_ext.convert(two_convs(), torch.randn(MAP)).report.to_dict()
    if "notes" in change:
        data |= change
    else:
        data["layers"][0] |= change
    with pytest.raises(TypeError, match=message):
        Report.from_dict(data)


# --- what it says ---------------------------------------------------------------------------------


def test_layers_in_front_of_a_sign():
    """A real first layer and its BatchNorm; what follows a binary layer goes into its kernel."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        bnn.BinaryConv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        bnn.BinaryLinear(16 * 16, 10),
        nn.BatchNorm1d(10),
    )
    x = torch.randn(2, 3, 12, 12)
    report = bnn_ext.convert(with_statistics(model), x).report
    binarize = "real weights, not ±s (bnn_ext.nn.binarize makes a model's layers binary)"
    assert rows(report) == {
        "0": ("left", binarize),
        "1": ("fused", "in the weight of 0"),
        "2": ("packed", "gives floats: AvgPool2d 5 takes real values"),
        "3": ("fused", "in the kernel of 2"),
        "4": ("fused", "in the kernel of 2"),
        "5": ("left", "avg_pool2d of real values"),
        "6": ("fused", "works on bits"),
        "7": ("packed", "gives floats: they are the network's output"),
        "8": ("fused", "in the kernel of 7"),
    }
    by_torch = rows(bnn_ext.convert(model, x, real_layers="torch").report)
    assert by_torch["1"] == ("fused", "in the threshold in front of 2")


def test_real_inputs():
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 8, 3, input_quantizer=None),
        nn.BatchNorm2d(8),
        bnn.BinaryConv2d(8, 4, 3),
    )
    x = torch.randn(2, 3, 12, 12)
    fused = rows(bnn_ext.convert(with_statistics(model), x).report)
    assert fused["0"] == ("fused", "gives bits; its input is real (no sign in front)")
    assert fused["1"] == ("fused", "in the threshold of 0")
    by_torch = rows(bnn_ext.convert(model, x, real_layers="torch").report)
    assert by_torch["0"] == (
        "packed",
        "gives floats: their signs are taken in a pass of its own; "
        "its input is real (no sign in front, so torch sums)",
    )
    assert by_torch["1"] == ("fused", "in the threshold in front of 2")


def test_what_is_not_monotone():
    model = nn.Sequential(bnn.BinaryLinear(20, 33), nn.GELU(), bnn.BinaryLinear(33, 5)).eval()
    report = rows(bnn_ext.convert(model, torch.randn(3, 20)).report)
    assert report["0"] == ("packed", "gives floats: GELU 1 takes real values")
    assert report["1"] == (
        "left",
        "gelu of real values: GELU is not known to be monotone in each channel",
    )


def test_layers_without_packed_kernels():
    model = nn.Sequential(bnn.BinaryConv1d(4, 6, 3), nn.Conv1d(6, 2, 3)).eval()
    report = rows(bnn_ext.convert(model, torch.randn(2, 4, 9)).report)
    why = "real: only linear layers and 2-d convolutions have packed kernels"
    assert report["0"] == ("left", why)
    assert report["1"][1].startswith("real weights, not ±s")


class Block(nn.Module):
    """A shortcut around a binary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.norm(self.conv(x)), x)


def test_shortcuts():
    model = with_statistics(nn.Sequential(Block(), Block()))
    report = rows(bnn_ext.convert(model, torch.randn(2, 8, 5, 5)).report)
    assert report == {
        "0.conv": ("packed", "gives floats and bits: the sum in Block 1 takes real values"),
        "0.norm": ("fused", "in the kernel of 0.conv"),
        "0": ("fused", "in the kernel of 0.conv"),
        "1.conv": ("packed", "gives floats: they are the network's output"),
        "1.norm": ("fused", "in the kernel of 1.conv"),
        "1": ("fused", "in the kernel of 1.conv"),
    }


class Signs(nn.Module):
    """As people write it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def test_notes():
    model = nn.Sequential(nn.Linear(20, 8), Signs(), bnn.BinaryLinear(8, 4, input_quantizer=None))
    report = bnn_ext.convert(model.eval(), torch.randn(3, 20)).report
    assert report.notes == ["the sign of 0 is 0 in the model and +1 on bits (at Signs 1)"]
    assert report.notes[0] in str(report).splitlines()


class Contrary(nn.Module):
    """Computes something else for another batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return x + len(x)


def test_a_model_that_cannot_be_read():
    model = nn.Sequential(nn.Linear(20, 4), Contrary()).eval()
    report = bnn_ext.convert(model, torch.randn(3, 20)).report
    (layer,) = report.layers
    assert (layer.kind, layer.status, layer.macs) == ("Sequential", "left", None)
    assert layer.reason.startswith("Contrary at 1 calls aten.add.Tensor with a number that follows")
    assert layer.bytes_before == layer.bytes_after == 4 * 84
    assert str(report).splitlines()[2].startswith("(model)  Sequential  left")
