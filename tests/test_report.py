"""The report of `convert`, as people read it and as data."""

from __future__ import annotations

import pytest
import torch
from small_models import MAP, two_convs
from torch import nn

import bnn_ext
from bnn_ext import nn as bnn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_report_reads_well():
    model = two_convs(nn.BatchNorm2d(33), nn.MaxPool2d(2), nn.Dropout())
    fast = bnn_ext.convert(model, torch.randn(MAP))
    lines = str(fast.report).splitlines()
    assert " ".join(lines[0].split()) == "layer kind status bytes before after MACs why"
    assert len(lines) == 2 + 5 + 1 + 1
    assert lines[2].split()[:6] == ["0", "BinaryConv2d", "fused", "3,696", "1,328", "98,010"]
    assert lines[3].endswith("in the threshold of 0")
    assert lines[6].endswith("gives floats: it is the network's output")
    assert lines[7].split()[0] == "total"
    assert lines[8].startswith("verified: all ")


def test_macs_of_the_report():
    """Multiply-accumulates of one sample: outputs times weights of each."""
    model = nn.Sequential(
        bnn.BinaryConv2d(4, 6, (3, 2), stride=2, groups=2), nn.Flatten(), bnn.BinaryLinear(96, 5)
    ).eval()
    fast = bnn_ext.convert(model, torch.randn(3, 4, 9, 8))  # 4x4 maps
    assert [line.macs for line in fast.report.layers] == [6 * 4 * 4 * (2 * 3 * 2), 0, 5 * 96]
    assert [line.macs for line in bnn_ext.convert(model).report.layers] == [None, None, None]
