"""Inference layers with real inputs and binary weights, by calls of torch or by our kernels.

The weights are packed, as those of the layers in packed.py, of which these are siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_ext import ops
from bnn_ext.nn.binary import scale_and_bias
from bnn_ext.nn.packed import (
    GEOMETRY,
    PackedLayer,
    PackedProduct,
    check_bool,
    contiguous,
    float_dtype,
    geometry,
    in_format,
    window,
)
from bnn_ext.reference import words

_Pair = tuple[int, int]


class _BinaryWeight(PackedLayer):
    """Real input, binary weight: the weight is kept as bits, torch computes with its signs."""

    weight: Tensor
    signs: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, fan_in: int, scale: Tensor | None, bias: Tensor | None, dtype: str
    ) -> None:
        super().__init__()
        for name, tensor in (("scale", scale), ("bias", bias)):
            if tensor is None:
                continue
            if tensor.shape != weight.shape[:1] or not tensor.is_floating_point():
                raise ValueError(
                    f"{name} must be a float for each of the {weight.shape[0]} output channels, "
                    f"found {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        self.dtype = dtype
        self.float_dtype = float_dtype(dtype)
        self.fan_in = fan_in
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._derive()

    def _derive(self) -> None:
        signs = ops.unpack(self.weight, self.fan_in, self.float_dtype)
        self.register_buffer("signs", self._as_torch(signs), persistent=False)

    def _as_torch(self, signs: Tensor) -> Tensor:
        """Unpacked signs in the shape of torch's weight."""
        return signs


class BinaryWeightLinear(_BinaryWeight):
    """`BinaryLinear` with a real input: torch's linear on the signs, then scale and bias.

    Args:
        weight: packed `[out, ceil(fan_in / 32)]`.
        fan_in: number of input features.
        scale: float `[out]` or None.
        bias: float `[out]` or None.
        dtype: "float32", "float16" or "bfloat16", of input and output.
    """

    attribute_names = ("fan_in", "dtype")

    def __init__(
        self,
        weight: Tensor,
        fan_in: int,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(weight, fan_in, scale, bias, dtype)
        self._check((1, fan_in), dtype=self.float_dtype)

    def forward(self, input: Tensor) -> Tensor:
        return scale_and_bias(F.linear(input, self.signs), self.scale, self.bias, spatial_dims=0)


class BinaryWeightConv2d(_BinaryWeight):
    """`BinaryConv2d` with a real input: torch's convolution with the signs, then scale and bias.

    Args:
        weight: packed `[out, kh, kw, ceil(fan_in / 32)]`.
        fan_in: input channels of one group.
        stride, padding, dilation, groups, pad_value: as for `bnn_ext.ops.conv2d`.
        channels_last: the memory format of the original weight. For another format torch may choose
            another algorithm, whose sums round in another order.
        scale, bias, dtype: as for `BinaryWeightLinear`.
    """

    attribute_names = ("fan_in", *GEOMETRY, "channels_last", "dtype")

    def __init__(
        self,
        weight: Tensor,
        fan_in: int,
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
        pad_value: int = 0,
        channels_last: bool = False,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        dtype: str = "float32",
    ) -> None:
        check_bool("channels_last", channels_last)
        self.channels_last = channels_last
        super().__init__(weight, fan_in, scale, bias, dtype)
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups = groups
        self.pad_value = pad_value
        self._check_geometry()

    def _as_torch(self, signs: Tensor) -> Tensor:
        signs = signs.permute(0, 3, 1, 2)
        return signs if self.channels_last else contiguous(signs)

    def _check_geometry(self) -> None:
        """Asks the packed convolution, since torch checks little on meta tensors."""
        channels = self.fan_in * self.groups
        size = window(self.weight.shape[1:3], self.dilation)
        ops.conv2d(
            torch.empty((1, *size, words(channels)), dtype=torch.int32, device="meta"),
            self.weight.to("meta"),
            channels,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.pad_value,
        )

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value != 0:
            vertical, horizontal = padding
            input = F.pad(input, (horizontal, horizontal, vertical, vertical), value=self.pad_value)
            padding = (0, 0)
        sums = F.conv2d(input, self.signs, None, self.stride, padding, self.dilation, self.groups)
        return scale_and_bias(sums, self.scale, self.bias, spatial_dims=2)


class RealInputLinear(PackedProduct):
    """`BinaryLinear` with a real input by `bnn_ext.ops.binary_weight_linear`.

    The formula of `BinaryWeightLinear`, its sums rounded in another order than torch's.

    Shape: input float `[..., in_features]`; output `[..., out]` in the dtype of the input, or
    packed `[..., ceil(out / 32)]` with a threshold.

    Args:
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of input features.
        scale, bias: float32 `[out]` or None, for float output.
        threshold, flip: float32 `[out]`, compared with the sums before scale and bias, and packed
            `[ceil(out / 32)]`, for packed output.
    """

    attribute_names = ("in_features",)

    def __init__(
        self,
        weight: Tensor,
        in_features: int,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
    ) -> None:
        super().__init__(weight, scale, bias, threshold, flip)
        self.in_features = in_features
        self._derive()
        self._check((1, in_features), dtype=torch.float32)

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight), persistent=False)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_features": self.in_features}
        operator = "binary_weight_linear" + ("" if self.threshold is None else "_bits")
        return operator, arguments | self._end()


class RealInputConv2d(PackedProduct):
    """`BinaryConv2d` with a real input by `bnn_ext.ops.binary_weight_conv2d`.

    Shape: input float `[N, in_channels, H, W]`; output `[N, out, H', W']` in the dtype of the
    input, or packed `[N, H', W', ceil(out / 32)]` with a threshold.

    Args:
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of input channels.
        stride, padding, dilation, groups, pad_value: as for `bnn_ext.ops.binary_weight_conv2d`.
        channels_last: the memory format of float output.
        scale, bias, threshold, flip: as for `RealInputLinear`.
    """

    attribute_names = ("in_channels", *GEOMETRY, "channels_last")

    def __init__(
        self,
        weight: Tensor,
        in_channels: int,
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
        pad_value: int = 0,
        channels_last: bool = False,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
    ) -> None:
        super().__init__(weight, scale, bias, threshold, flip)
        check_bool("channels_last", channels_last)
        self.in_channels = in_channels
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups = groups
        self.pad_value = pad_value
        self.channels_last = channels_last
        self._derive()
        size = window(weight.shape[1:3], dilation)
        self._check((1, in_channels, *size), dtype=torch.float32)

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight, self.groups), persistent=False)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_channels": self.in_channels}
        operator = "binary_weight_conv2d" + ("" if self.threshold is None else "_bits")
        return operator, arguments | geometry(self) | self._end()

    def forward(self, *inputs: Tensor) -> Tensor:
        return in_format(super().forward(*inputs), self)
