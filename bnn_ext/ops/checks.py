"""Argument checks: each names the argument, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_ext import _extension
from bnn_ext.reference import words

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Pair = int | Sequence[int]


def check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], rank: int | None = None
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {expected}, found {tensor.dtype}")
    if rank is not None and tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, found shape {tuple(tensor.shape)}")


def check_packed(name: str, tensor: Tensor, bits: int, rank: int | None = None) -> None:
    """`tensor` is packed and its last dimension holds exactly `bits` bits."""
    check_tensor(name, tensor, (torch.int32,), rank)
    if tensor.dim() == 0 or tensor.shape[-1] != words(bits):
        raise ValueError(
            f"{name} must have {words(bits)} words in its last dimension to hold {bits} bits, "
            f"found shape {tuple(tensor.shape)}"
        )


def check_vector(
    name: str, tensor: Tensor | None, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    """`tensor` is None or a vector of `length` values of `dtype` on `device`."""
    if tensor is None:
        return
    check_tensor(name, tensor, (dtype,), rank=1)
    if tensor.shape[0] != length:
        raise ValueError(f"{name} must have {length} elements, found {tensor.shape[0]}")
    check_no_gradient(name, tensor)
    check_device(name, tensor, device)


def check_no_gradient(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient, since packed operators have none; detach() it"
        )


def check_flip(name: str, flip: Tensor | None, channels: int, device: torch.device) -> None:
    if flip is not None:
        check_packed(name, flip, channels, rank=1)
        check_device(name, flip, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the input, found {tensor.device}")


def check_supported(name: str, tensor: Tensor) -> None:
    kind = tensor.device.type
    if kind == "cuda" and not _extension.has_cuda:
        raise ValueError(
            f"{name} is on {tensor.device}, but this bnn_ext was built without its CUDA kernels; "
            "reinstall it where nvcc and a CUDA build of torch are found (`python -m bnn_ext`)"
        )
    if kind not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} must be on the CPU or a CUDA device, found {tensor.device}")


def check_integer(name: str, value: int, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, found {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, found {value}")


def check_sums(name: str, k: int) -> None:
    """Sums of `k` signs fit into int32."""
    if k >= 2**31:
        raise ValueError(f"{name} must give sums below 2**31, found sums of {k} signs")


def check_dtype(name: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> None:
    if dtype not in dtypes:
        expected = ", ".join(str(d) for d in dtypes)
        raise TypeError(f"{name} must be one of {expected}, found {dtype}")


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    if isinstance(value, (int, torch.SymInt)):
        value = (value, value)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be one integer or two, found {type(value).__name__}")
    pair = tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one integer or two, found {value}")
    for entry in pair:
        check_integer(name, entry, least)
    return pair
