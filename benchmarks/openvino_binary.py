"""OpenVINO's BinaryConvolution, the fastest binary convolution on x86 before this one.

A graph of opset1: a FakeQuantize of two levels makes bits, `BinaryConvolution` with the mode
"xnor-popcount" multiplies them as ±1. Its pad_value 0 is our zero padding: padded positions add
nothing. OpenVINO fuses each FakeQuantize into the convolution before it, so that between two
convolutions only bits pass, as here. It has no groups, and gives float32 where we give int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from peers import Missing, OpenvinoRequest, check
from timing import Implementation
from torch import Tensor

from bnn_ext import ops

DEPTH = 4  # layers in a stack
COUNTER_MICROSECONDS = 1  # OpenVINO's counters hold whole ones


def signs(node: Any, threshold: Tensor | None = None, rising: Tensor | None = None) -> Any:
    """Bits of `node >= threshold` per channel, of `node <= threshold` where it is not `rising`."""
    from openvino import opset1

    threshold = torch.zeros(1) if threshold is None else threshold
    rising = torch.ones(1, dtype=torch.bool) if rising is None else rising
    # A FakeQuantize asks whether x > t.
    below = torch.nextafter(threshold.float(), torch.tensor(-torch.inf))
    above = torch.where(rising, below, threshold.float())
    limit, low, high = (
        values.float().view(1, -1, 1, 1).numpy() for values in (above, ~rising, rising)
    )
    return opset1.fake_quantize(node, limit, limit, low, high, 2)


def binary_conv(bits: Any, weight: Tensor, strides: Sequence[int], pads: Sequence[int]) -> Any:
    """Sums of ±1, from bits; `weight` is ±1 `[out, in, kh, kw]`."""
    import openvino
    from openvino import opset1

    channels = weight.shape[1]
    if channels % 8:
        raise Missing(f"OpenVINO's BinaryConvolution fails with {channels} channels, not n x 8")
    packed = np.packbits((weight > 0).contiguous().numpy(), bitorder="little")
    values = openvino.Tensor(packed, list(weight.shape), openvino.Type.u1)
    constant = openvino.op.Constant(values, shared_memory=False)
    strides, pads = list(strides), list(pads)
    return opset1.binary_convolution(
        bits, constant, strides, pads, pads, [1, 1], "xnor-popcount", 0.0
    )


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
    geometry = {"stride": stride, "padding": padding}
    stacked = threshold is not None and len(weight) == x.shape[1] and stride == 1
    names = [f"layer {number}" for number in range(DEPTH if stacked else 1)]

    import openvino
    from openvino import opset1

    parameter = opset1.parameter(list(x.shape), np.float32)
    node = signs(parameter)
    bits = ops.pack(x.permute(0, 2, 3, 1))
    packed = ops.pack(weight.permute(0, 2, 3, 1))
    for name in names:
        node = binary_conv(node, weight, [stride, stride], [padding, padding])
        node.set_friendly_name(name)
        if threshold is None:
            expected = ops.conv2d(bits, packed, x.shape[1], **geometry)
        else:
            node = signs(node, threshold)
            bits = ops.conv2d_bits(bits, packed, x.shape[1], **geometry, threshold=threshold)
    if threshold is not None:
        reader = weight.new_ones(16, len(weight), 1, 1)
        node = binary_conv(node, reader, [1, 1], [0, 0])
        expected = ops.conv2d(bits, ops.pack(reader.permute(0, 2, 3, 1)), len(weight))

    model = openvino.Model([node], [parameter])
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
    """What a layer's kernel takes, in the mean over the named layers and some warm calls."""
    times = counted_microseconds(fresh, calls)
    return 1e-6 * max(sum(times[name] for name in names) / len(names), COUNTER_MICROSECONDS)


def counted_microseconds(fresh: OpenvinoRequest, calls: int) -> dict[str, float]:
    """What each node takes, by name: the mean over some warm calls.

    The counters hold means over all calls since the compilation, rounded down to microseconds. So
    the request must be newly compiled, and its first call, a cold one, is taken out again.
    """

    def counted() -> dict[str, float]:
        infos = fresh.request.profiling_info
        return {info.node_name: info.real_time / timedelta(microseconds=1) for info in infos}

    fresh()
    cold = counted()
    for _ in range(calls):
        fresh()
    means = counted().items()
    return {name: max(0.0, mean * (calls + 1) - cold[name]) / calls for name, mean in means}
