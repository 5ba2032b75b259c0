"""Real 1x1 convolutions as products of matrices, as `bnn_ext.convert` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bnn_ext.nn.packed import OperatorLayer


class PointwiseConv2d(OperatorLayer):
    """A convolution with windows of 1x1 at every place, `torch.nn.functional.linear` of pixels.

    In torch.channels_last a map is a matrix of pixels and channels, and nothing is moved. A
    sequence of our operators can call it, where a convolution of torch would part it in two.

    Shape: input `[N, in, H, W]`, output `[N, out, H, W]` in torch.channels_last.

    Args:
        weight: `[out, in]`, real; kept with `out` last in memory, which is faster.
        bias: `[out]` or None.

    Raises:
        ValueError: they are something else.
    """

    map_inputs = (0,)
    gives_map = True
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.dim() != 2 or not weight.is_floating_point():
            raise ValueError(
                f"weight must be [out, in] and real, found {weight.dtype} {tuple(weight.shape)}"
            )
        if bias is not None and (bias.shape, bias.dtype) != (weight.shape[:1], weight.dtype):
            raise ValueError(
                f"bias must be {weight.dtype} [{weight.shape[0]}] like the weight, found "
                f"{bias.dtype} {tuple(bias.shape)}"
            )
        self.register_buffer("weight", weight.t().contiguous().t())
        self.register_buffer("bias", bias)
        self._check((1, weight.shape[1], 1, 1), dtype=weight.dtype)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        return "torch_linear", {"input": inputs[0], "weight": self.weight, "bias": self.bias}

    def forward(self, *inputs: Tensor) -> Tensor:
        (input,) = inputs
        pixels = F.linear(input.permute(0, 2, 3, 1), self.weight, self.bias)
        return pixels.permute(0, 3, 1, 2)
