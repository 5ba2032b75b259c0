"""Random packed operands, and the parts of results that are compared with the reference."""

from __future__ import annotations

import torch
from gpu import device
from torch import Tensor

from bnn_ext import reference

WORD_BITS = 32


def random_bits(*shape: int) -> Tensor:
    """Packed along the last dimension, whose size counts bits."""
    *leading, bits = shape
    size = (*leading, reference.words(bits))
    packed = torch.randint(-(2**31), 2**31, size, dtype=torch.int32, device=device.DEVICE)
    if tail := bits % WORD_BITS:
        packed[..., -1] &= (1 << tail) - 1
    return packed


def spread(size: int, count: int) -> Tensor:
    """Up to `count` indices from all over `range(size)`, the first and the last among them."""
    return torch.linspace(0, size - 1, count, dtype=torch.float64).round().long().unique()


class Part:
    """Some words of the output channels, and these channels.

    A test of whole results would take minutes on the CPU: words from all over the result are
    compared instead, at every tile size some tile of it.
    """

    WORDS = 4

    def __init__(self, channels: int) -> None:
        self.words = spread(reference.words(channels), self.WORDS)
        bits = self.words[:, None] * WORD_BITS + torch.arange(WORD_BITS)
        self.channels = bits[bits < channels]

    def of(self, vector: Tensor) -> Tensor:
        """Of one value for each channel, along the first dimension; on the CPU."""
        return vector[self.channels].cpu()

    def of_result(self, result: Tensor, are_bits: bool) -> Tensor:
        """Of channels, or of packed words, along the last dimension; on the CPU."""
        return result[..., self.words if are_bits else self.channels].cpu()


def expect_equal(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype, f"gives {found.dtype}, not {expected.dtype}"
    different = int((found != expected).sum())
    assert not different, f"{different:,} of the {expected.numel():,} compared results are wrong"
