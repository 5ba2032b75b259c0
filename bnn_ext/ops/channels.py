"""Choosing channels of packed tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext.ops.calls import checked_by_kernel, runs_now
from bnn_ext.ops.checks import (
    check_device,
    check_integer,
    check_packed,
    check_supported,
    check_tensor,
)
from bnn_ext.reference import words


@checked_by_kernel
def select_channels(inputs: Sequence[Tensor], channels: Sequence[int], index: Tensor) -> Tensor:
    """Any channels of packed tensors in any order: output channel j is channel `index[j]`.

    Channels count through all inputs: `torch.arange(sum(channels))` concatenates them. Slices,
    shuffles and any permutation are other values of `index`; channels may repeat. Neighbours that
    stay neighbours are moved together, whole words fastest.

    Args:
        inputs: packed `[..., ceil(channels[i] / 32)]`, all of the same leading dimensions; on CUDA
            at most 128.
        channels: number of real bits in the last dimension of each.
        index: int32 `[C]`, from 0 to `sum(channels) - 1`. On CUDA other values end in an assertion
            on the device, as those of `torch.index_select` do.

    Returns:
        packed `[..., ceil(C / 32)]`.
    """
    for name, sequence in (("inputs", inputs), ("channels", channels)):
        if not isinstance(sequence, (tuple, list)):
            raise TypeError(f"{name} must be a list or tuple, found {type(sequence).__name__}")
    if not inputs:
        raise ValueError("inputs must be at least one tensor, found none")
    if len(channels) != len(inputs):
        raise ValueError(
            f"channels must have {len(inputs)} elements like inputs, found {len(channels)}"
        )
    for i, (packed, count) in enumerate(zip(inputs, channels, strict=True)):
        check_integer(f"channels[{i}]", count, 0)
        check_packed(f"inputs[{i}]", packed, count)
        check_supported(f"inputs[{i}]", packed)
        check_device(f"inputs[{i}]", packed, inputs[0].device)
        if packed.shape[:-1] != inputs[0].shape[:-1]:
            raise ValueError(
                f"inputs[{i}] must have the leading dimensions {tuple(inputs[0].shape[:-1])} like "
                f"inputs[0], found shape {tuple(packed.shape)}"
            )
    check_tensor("index", index, (torch.int32,), rank=1)
    check_device("index", index, inputs[0].device)
    if runs_now((index,), {}):  # else its values are not known yet
        for channel in index.tolist():
            if not 0 <= channel < sum(channels):
                raise ValueError(f"index must be in 0..{sum(channels) - 1}, found {channel}")
    return torch.ops.bnn_ext.select_channels(inputs, channels, index)


@torch.library.register_fake("bnn_ext::select_channels")
def _(inputs: Sequence[Tensor], channels: Sequence[int], index: Tensor) -> Tensor:
    return inputs[0].new_empty((*inputs[0].shape[:-1], words(index.shape[0])))
