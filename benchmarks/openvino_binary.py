"""OpenVINO's BinaryConvolution, the fastest binary convolution on x86 before this one.

A graph of opset1: a FakeQuantize of two levels makes bits, `BinaryConvolution` with the mode
"xnor-popcount" multiplies them as ±1. Its pad_value 0 is our zero padding: padded positions add
nothing. OpenVINO fuses each FakeQuantize into the convolution before it, so that between two
convolutions only bits pass, as here. It has no groups, and gives float32 where we give int32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from peers import ROUNDING, Missing, OpenvinoRequest, Work, check
from timing import Implementation
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import ops

DEPTH = 4  # layers in a stack
COUNTER_SECONDS = 1e-6  # OpenVINO's counters hold whole microseconds


class Graph:
    """A model that grows layer by layer. Values are NCHW."""

    def __init__(self, shape: Iterable[int]) -> None:
        from openvino import opset1

        self.opset = opset1
        self.node = self.parameter = opset1.parameter(list(shape), np.float32)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Channels, height and width of the last output."""
        return tuple(self.node.get_output_shape(0))[1:]

    def signs(self, threshold: Tensor | None = None, rising: Tensor | None = None) -> None:
        """Bits of `x >= threshold` per channel, of `x <= threshold` where it is not `rising`."""
        threshold = torch.zeros(1) if threshold is None else threshold
        rising = torch.ones(1, dtype=torch.bool) if rising is None else rising
        # A FakeQuantize asks whether x > t.
        below = torch.nextafter(threshold.float(), torch.tensor(-torch.inf))
        above = torch.where(rising, below, threshold.float())
        limit, low, high = (
            values.float().view(1, -1, 1, 1).numpy() for values in (above, ~rising, rising)
        )
        self.node = self.opset.fake_quantize(self.node, limit, limit, low, high, 2)

    def binary_conv(
        self, weight: Tensor, stride: int = 1, padding: int = 0, name: str | None = None
    ) -> None:
        """Sums of ±1, from bits; `weight` is ±1 `[out, in, kh, kw]`."""
        import openvino

        bits = np.packbits((weight > 0).contiguous().numpy(), bitorder="little")
        packed = openvino.Tensor(bits, list(weight.shape), openvino.Type.u1)
        constant = openvino.op.Constant(packed, shared_memory=False)
        strides, pads, dilations = [stride, stride], [padding, padding], [1, 1]
        self.node = self.opset.binary_convolution(
            self.node, constant, strides, pads, pads, dilations, "xnor-popcount", 0.0
        )
        if name:
            self.node.set_friendly_name(name)

    def conv(self, weight: Tensor, padding: int) -> None:
        """Products of real numbers, stride 1."""
        pads = [padding, padding]
        self.node = self.opset.convolution(
            self.node, weight.contiguous().numpy(), [1, 1], pads, pads, [1, 1]
        )

    def max_pool(self, size: int) -> None:
        """Windows side by side."""
        self.node = self.opset.max_pool(self.node, [size, size], [0, 0], [0, 0], [size, size])

    def scale_and_shift(self, scale: Tensor, shift: Tensor) -> None:
        """Real numbers, per channel."""
        scale, shift = (t.view(1, -1, 1, 1).numpy() for t in (scale, shift))
        self.node = self.opset.add(self.opset.multiply(self.node, scale), shift)

    def model(self) -> Any:
        """What has grown so far."""
        import openvino

        return openvino.Model([self.node], [self.parameter])


def layer(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    macs: int,
    threads: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> list[Implementation]:
    """One layer: the time of its kernel by OpenVINO's own counters, and of a graph by the clock.

    A layer that gives bits in the shape of its input is stacked four times. After bits comes a
    small convolution that reads them, or OpenVINO would turn them into floats.

    Args:
        x: ±1 `[N, C, H, W]`.
        weight: ±1 `[out, C, kh, kw]`.
        threshold: int32 `[out]` for an output of bits, None for one of sums.
        macs: of the layer.
        threads: for OpenVINO.
        stride, padding, groups: of the layer.
    """
    if groups != 1:
        raise Missing("OpenVINO's BinaryConvolution has no groups")
    if x.shape[1] % 8:
        raise Missing(f"OpenVINO's BinaryConvolution fails with {x.shape[1]} channels, not n x 8")
    geometry = {"stride": stride, "padding": padding}
    stacked = threshold is not None and len(weight) == x.shape[1] and stride == 1
    names = [f"layer {number}" for number in range(DEPTH if stacked else 1)]

    graph = Graph(x.shape)
    graph.signs()
    bits = ops.pack(x.permute(0, 2, 3, 1))
    packed = ops.pack(weight.permute(0, 2, 3, 1))
    for name in names:
        graph.binary_conv(weight, **geometry, name=name)
        if threshold is None:
            expected = ops.conv2d(bits, packed, x.shape[1], **geometry)
        else:
            graph.signs(threshold)
            bits = ops.conv2d_bits(bits, packed, x.shape[1], **geometry, threshold=threshold)
    if threshold is not None:
        reader = weight.new_ones(16, len(weight), 1, 1)
        graph.binary_conv(reader)
        expected = ops.conv2d(bits, ops.pack(reader.permute(0, 2, 3, 1)), len(weight))

    model = graph.model()
    run = OpenvinoRequest(model, x, threads)
    check("OpenVINO binary", run(), expected.permute(0, 3, 1, 2))

    def kernel_clock(calls: int) -> float:
        return kernel_seconds(OpenvinoRequest(model, x, threads, profile=True), names, calls)

    dtype = "float32" if threshold is None else "bits"
    graph_name = f"OpenVINO binary graph of {len(names)}"
    return [
        Implementation("OpenVINO binary kernel", dtype, run, macs, own_clock=kernel_clock),
        Implementation(graph_name, "float32", run, macs * len(names)),
    ]


def kernel_seconds(fresh: OpenvinoRequest, names: Sequence[str], calls: int) -> float:
    """What a layer's kernel takes, in the mean over the named layers and some warm calls.

    The counters hold means over all calls since the compilation, rounded down to microseconds. So
    every block has a newly compiled request, and its first call, a cold one, is taken out again.
    """

    def counted() -> timedelta:
        times = {info.node_name: info.real_time for info in fresh.request.profiling_info}
        return sum((times[name] for name in names), timedelta())

    fresh()
    cold = counted()
    for _ in range(calls):
        fresh()
    warm = (counted() * (calls + 1) - cold) / calls
    return max(warm.total_seconds() / len(names), COUNTER_SECONDS)


def network(work: Work, layers: Iterable[nn.Module]) -> list[Implementation]:
    """A network of `bnn_ext.nn` layers; its BatchNorms become thresholds, as `convert` does it."""
    graph = Graph(work.x.shape)
    norm = None  # the BatchNorm since the last products
    for module in layers:
        if isinstance(module, (bnn.BinaryConv2d, bnn.BinaryLinear)):
            weight, _ = module.signs_and_scale()
            is_conv = isinstance(module, bnn.BinaryConv2d)
            padding = module.padding[0] if is_conv else 0
            if not is_conv:  # a convolution over the whole map
                weight = weight.unflatten(1, graph.map_shape)
            if module.input_quantizer is None:
                graph.conv(weight, padding)
            else:
                graph.signs(*_threshold(norm))
                graph.binary_conv(weight, padding=padding)
            norm = None
        elif isinstance(module, nn.MaxPool2d):
            graph.max_pool(module.kernel_size)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm = module
        elif not isinstance(module, (nn.Flatten, nn.Hardtanh)):  # these two keep all signs
            raise Missing(f"{type(module).__name__} has no binary graph here")
    scale, shift = _scale_and_shift(norm)
    graph.scale_and_shift(scale, shift)
    run = OpenvinoRequest(graph.model(), work.x, work.threads)
    check("OpenVINO binary", run().reshape(work.expected.shape), work.expected, ROUNDING)
    return [Implementation("OpenVINO binary", "float32", run, work.macs)]


def _scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as `x * scale + shift`."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _threshold(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Where BatchNorm's output changes its sign, and whether it rises there."""
    scale, shift = _scale_and_shift(norm)
    return -shift / scale, scale > 0
