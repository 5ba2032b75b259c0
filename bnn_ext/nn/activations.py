"""What stands around binary layers: learned shifts, scales and slopes of each channel.

Channels are dimension 1: `[N, C]` rows, `[N, C, H, W]` maps and all else of that form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn_ext import quantizers
from bnn_ext.quantizers import Quantizer

_Device = torch.device | str | None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


class LearnableBias(nn.Module):
    """`x + bias` per channel, the bias 0 at first.

    In front of a binary layer it is ReActNet's RSign, since the layer takes the sign itself: the
    network learns the threshold of each channel.

    Shape: `[N, C, ...]` to the same.

    Args:
        channels: C.
        device, dtype: as for torch.nn's layers.

    Source: Liu, Shen, Savvides, Cheng, "ReActNet", 2020 (arXiv:2003.03488), equation 2.
    """

    def __init__(
        self, channels: int, device: _Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + _per_channel(self.bias, x)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}"


class LearnableScale(nn.Module):
    """`x * scale` per channel, the scale 1 at first.

    Shape: `[N, C, ...]` to the same.

    Args:
        channels: C.
        device, dtype: as for torch.nn's layers.

    Source: Paren, Poudel, "Training Binarized Neural Networks the Easy Way", 2022, which scales
    the sums of a binary convolution with it.
    """

    def __init__(
        self, channels: int, device: _Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * _per_channel(self.scale, x)

    def extra_repr(self) -> str:
        return f"{self.scale.numel()}"


class RSign(LearnableBias):
    """The sign after a learned shift: +1 where `x >= -bias`, else -1.

    For layers that do not take the sign of their input; in front of a binary layer that does, a
    `LearnableBias` is enough.

    Shape: `[N, C, ...]` to the same, of ±1.

    Args:
        channels: C.
        quantizer: name or callable; it decides the gradient.
        device, dtype: as for torch.nn's layers.

    Raises:
        ValueError: the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: "ReActNet", 2020 (arXiv:2003.03488), equation 2.
    """

    def __init__(
        self,
        channels: int,
        quantizer: str | Quantizer = "approx_sign",
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, device, dtype)
        self.quantizer = quantizers.get(quantizer)

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.quantizer if self.training else quantizers.deterministic(self.quantizer)
        return quantizer(super().forward(x))


class RPReLU(nn.Sequential):
    """A PReLU whose kink the network may shift in both directions, per channel.

    Three modules in a row: a `LearnableBias`, a `torch.nn.PReLU` and a second `LearnableBias`.

    Shape: `[N, C, ...]` to the same.

    Args:
        channels: C.
        device, dtype: as for torch.nn's layers.

    Source: "ReActNet", 2020 (arXiv:2003.03488), equation 4.
    """

    def __init__(
        self, channels: int, device: _Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(
            LearnableBias(channels, device, dtype),
            nn.PReLU(channels, device=device, dtype=dtype),
            LearnableBias(channels, device, dtype),
        )
