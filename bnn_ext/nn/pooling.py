"""Pools of real maps by our operators, as `bnn_ext.convert` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnn_ext.nn.packed import OperatorLayer, check_bool, window

_Pair = tuple[int, int]


class RealPool(OperatorLayer):
    """A pool of float32 maps `[N, C, H, W]`; what it gives is in torch.channels_last.

    Inputs in torch.channels_last are read where they are, others are copied first.
    """

    operator: str
    map_inputs = (0,)
    gives_map = True

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {name: getattr(self, name) for name in self.attribute_names}
        return self.operator, {"input": inputs[0], **arguments}


class RealMaxPool2d(RealPool):
    """`torch.nn.MaxPool2d`, bit for bit; see `bnn_ext.ops.max_pool2d_float`."""

    operator = "max_pool2d_float"
    attribute_names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self,
        kernel_size: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        check_bool("ceil_mode", ceil_mode)
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)
        self.padding, self.dilation = tuple(padding), tuple(dilation)
        self.ceil_mode = ceil_mode
        self._check((1, 1, *window(self.kernel_size, self.dilation)), dtype=torch.float32)


class RealAvgPool2d(RealPool):
    """`torch.nn.AvgPool2d` of torch.channels_last, bit for bit; see `bnn_ext.ops.avg_pool2d`."""

    operator = "avg_pool2d"
    attribute_names = (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )

    def __init__(
        self,
        kernel_size: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        check_bool("ceil_mode", ceil_mode)
        check_bool("count_include_pad", count_include_pad)
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)
        self.padding = tuple(padding)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override
        self._check((1, 1, *self.kernel_size), dtype=torch.float32)


class RealGlobalAvgPool2d(RealPool):
    """`torch.nn.AdaptiveAvgPool2d(1)`, summed row after row; see `ops.global_avg_pool2d`."""

    operator = "global_avg_pool2d"
