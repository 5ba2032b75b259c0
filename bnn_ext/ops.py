"""The packed operators: one wrapper each, with its documentation, argument errors and fake kernel.

A packed tensor is int32, 32 bits a word, least significant bit first, along the last dimension:
features of a matrix, channels of an NHWC map. Bit 1 is +1, bit 0 is -1; the tail bits of the last
word are 0. `[..., C]` real values become `[..., ceil(C / 32)]` words.

Each operator computes exactly what the function of the same name in `bnn_ext.reference` computes.
Wrong arguments raise `TypeError` (type or dtype) or `ValueError` (shape, value, device), naming
the argument, what was found and what was expected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from bnn_ext import _extension, reference
from bnn_ext.reference import words

__all__ = [
    "pack",
    "unpack",
    "flatten",
    "tile_weight",
    "linear",
    "linear_float",
    "linear_bits",
    "linear_fused",
    "conv2d",
    "conv2d_float",
    "conv2d_bits",
    "conv2d_fused",
    "binary_weight_linear",
    "binary_weight_linear_bits",
    "binary_weight_conv2d",
    "binary_weight_conv2d_bits",
    "max_pool2d",
]

TILE_CHANNELS = 16  # output channels that lie side by side in tiled weights

_PACKABLE = (torch.float32, torch.float16, torch.bfloat16, torch.int32)
_UNPACKED = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int8)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_REAL = (*_FLOATS, torch.uint8)

_Pair = int | Sequence[int]

# A step of an epilogue: its name, and its operand for each output channel or for each output.
Step = tuple[str, Tensor]
STEPS = ("multiply", "add", "prelu", "maximum", "minimum")  # numbered as in epilogue_kernels.h


# --- argument checks ------------------------------------------------------------------------------


def _check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], rank: int | None = None
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {expected}, found {tensor.dtype}")
    if rank is not None and tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, found shape {tuple(tensor.shape)}")


def _check_packed(name: str, tensor: Tensor, bits: int, rank: int | None = None) -> None:
    """`tensor` is packed and its last dimension holds exactly `bits` bits."""
    _check_tensor(name, tensor, (torch.int32,), rank)
    if tensor.dim() == 0 or tensor.shape[-1] != words(bits):
        raise ValueError(
            f"{name} must have {words(bits)} words in its last dimension to hold {bits} bits, "
            f"found shape {tuple(tensor.shape)}"
        )


def _check_vector(
    name: str, tensor: Tensor | None, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    """`tensor` is None or a vector of `length` values of `dtype` on `device`."""
    if tensor is None:
        return
    _check_tensor(name, tensor, (dtype,), rank=1)
    if tensor.shape[0] != length:
        raise ValueError(f"{name} must have {length} elements, found {tensor.shape[0]}")
    _check_no_gradient(name, tensor)
    _check_device(name, tensor, device)


def _check_no_gradient(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient, since packed operators have none; detach() it"
        )


def _check_flip(name: str, flip: Tensor | None, channels: int, device: torch.device) -> None:
    if flip is not None:
        _check_packed(name, flip, channels, rank=1)
        _check_device(name, flip, device)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the input, found {tensor.device}")


def _check_supported(name: str, tensor: Tensor) -> None:
    kind = tensor.device.type
    if kind == "cuda" and not _extension.has_cuda:
        raise ValueError(
            f"{name} is on {tensor.device}, but this bnn_ext was built without its CUDA kernels; "
            "reinstall it where nvcc and a CUDA build of torch are found (`python -m bnn_ext`)"
        )
    if kind not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} must be on the CPU or a CUDA device, found {tensor.device}")


def _check_integer(name: str, value: int, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, found {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, found {value}")


def _check_sums(name: str, k: int) -> None:
    """Sums of `k` signs fit into int32."""
    if k >= 2**31:
        raise ValueError(f"{name} must give sums below 2**31, found sums of {k} signs")


def _check_dtype(name: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> None:
    if dtype not in dtypes:
        expected = ", ".join(str(d) for d in dtypes)
        raise TypeError(f"{name} must be one of {expected}, found {dtype}")


def _pair(name: str, value: _Pair, least: int) -> tuple[int, int]:
    if isinstance(value, (int, torch.SymInt)):
        value = (value, value)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be one integer or two, found {type(value).__name__}")
    pair = tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one integer or two, found {value}")
    for entry in pair:
        _check_integer(name, entry, least)
    return pair


def _check_tiles(tiles: Tensor | None, weight: Tensor, groups: int) -> None:
    if tiles is None:
        return
    _check_tensor("tiles", tiles, (torch.int32,), rank=3)
    expected = _tiles_shape(weight, groups)
    if tuple(tiles.shape) != expected:
        raise ValueError(
            f"tiles must be tile_weight(weight, groups) with shape {expected}, "
            f"found {tuple(tiles.shape)}"
        )
    _check_device("tiles", tiles, weight.device)


def _check_fused(
    steps: Sequence[Step],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Checks what finishes outputs of `shape`."""
    channels = shape[-1]
    for name, operand in steps:
        if name not in STEPS:
            raise ValueError(f"steps must be named {', '.join(STEPS)}, found {name!r}")
        what = f"the operand of {name!r} in steps"
        if isinstance(operand, Tensor) and operand.dim() == 1:
            _check_vector(what, operand, channels, torch.float32, device)
            continue
        _check_tensor(what, operand, _FLOATS)
        if tuple(operand.shape) != shape:
            raise ValueError(
                f"{what} must have {channels} elements or the output's shape {shape}, "
                f"found shape {tuple(operand.shape)}"
            )
        _check_no_gradient(what, operand)
        _check_device(what, operand, device)
    if dtype is None and threshold is None:
        raise ValueError("dtype or threshold must be given, found None for both")
    if dtype is not None:
        _check_dtype("dtype", dtype, _FLOATS)
    if threshold is not None:
        _check_vector("threshold", threshold, channels, torch.float32, device)
    elif flip is not None:
        raise ValueError("flip needs a threshold, found threshold=None")
    _check_flip("flip", flip, channels, device)


# --- calls ----------------------------------------------------------------------------------------

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _checked_by(kernel: Callable[..., _R]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Lets a kernel with the arguments of the wrapper check them first.

    It does so in less time than Python needs, which counts where a layer takes as long as these
    checks; but it names less. So where it refuses, the wrapper is called, to say what is wrong.
    """

    def decorate(wrapper: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(wrapper)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if _runs_now(args, kwargs):
                try:
                    return kernel(*args, **kwargs)
                except (RuntimeError, TypeError, ValueError):
                    pass
            return wrapper(*args, **kwargs)

        return call

    return decorate


def _checked_by_kernel(wrapper: Callable[_P, _R]) -> Callable[_P, _R]:
    """`_checked_by` the operator of the wrapper's name: their schemas have the same arguments."""
    return _checked_by(getattr(torch.ops.bnn_ext, wrapper.__name__).default)(wrapper)


def _runs_now(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a kernel will run on the CPU: nothing is traced or faked, no gradient is asked."""
    input = args[0] if args else None
    if not isinstance(input, Tensor) or type(input) not in (Tensor, nn.Parameter):
        return False
    if not input.is_cpu or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and _requires_grad((*args, *kwargs.values())))


def _requires_grad(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_requires_grad, value))
    return isinstance(value, Tensor) and value.requires_grad


# --- shapes ---------------------------------------------------------------------------------------


def _tiles_shape(weight: Tensor, groups: int) -> tuple[int, int, int]:
    blocks = groups * (-(-(weight.shape[0] // groups) // TILE_CHANNELS))
    taps_and_words = 1
    for size in weight.shape[1:]:
        taps_and_words *= size
    return blocks, taps_and_words, TILE_CHANNELS


def _conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _pool_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # torch's rule: the last window starts inside the input or its left padding.
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


# --- packing --------------------------------------------------------------------------------------


@_checked_by_kernel
def pack(input: Tensor, threshold: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    """Packs signs, or comparisons with a threshold per channel, along the last dimension.

    Args:
        input: `[..., C]`, float32, float16, bfloat16 or int32, any strides.
        threshold: `[C]`, float32 (int32 for an int32 input); None compares with 0.
        flip: packed `[ceil(C / 32)]`; where its bit is set the comparison is `input <= threshold`
            instead of `input >= threshold`. NaN gives 0 either way. Needs `threshold`.

    Returns:
        int32 `[..., ceil(C / 32)]`.
    """
    _check_tensor("input", input, _PACKABLE)
    if input.dim() == 0:
        raise ValueError("input must have at least 1 dimension, found a scalar")
    _check_supported("input", input)
    channels = input.shape[-1]
    if threshold is None:
        if flip is not None:
            raise ValueError("flip needs a threshold, found threshold=None")
    else:
        dtype = torch.int32 if input.dtype == torch.int32 else torch.float32
        _check_vector("threshold", threshold, channels, dtype, input.device)
    _check_flip("flip", flip, channels, input.device)
    return torch.ops.bnn_ext.pack(input, threshold, flip)


@torch.library.register_fake("bnn_ext::pack")
def _(input: Tensor, threshold: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(input.shape[-1])), dtype=torch.int32)


def unpack(packed: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack`: +1 and -1 in `dtype`.

    Args:
        packed: int32 `[..., ceil(channels / 32)]`.
        channels: number of real bits in the last dimension.
        dtype: float32, float16, bfloat16, int32 or int8.

    Returns:
        `[..., channels]` of `dtype`.
    """
    _check_integer("channels", channels, 0)
    _check_packed("packed", packed, channels)
    _check_supported("packed", packed)
    _check_dtype("dtype", dtype, _UNPACKED)
    return torch.ops.bnn_ext.unpack(packed, channels, dtype)


@torch.library.register_fake("bnn_ext::unpack")
def _(packed: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], channels), dtype=dtype)


def flatten(packed: Tensor, channels: int) -> Tensor:
    """Joins all dimensions but the first, dropping the tail bits in between.

    Args:
        packed: int32 `[N, ..., ceil(channels / 32)]`.
        channels: number of real bits in the last dimension.

    Returns:
        int32 `[N, ceil(F / 32)]` with `F` the product of the inner sizes and `channels`; the order
        of an NHWC map is height, width, channel.
    """
    _check_integer("channels", channels, 0)
    _check_packed("packed", packed, channels)
    if packed.dim() < 2:
        raise ValueError(
            f"packed must have at least 2 dimensions, found shape {tuple(packed.shape)}"
        )
    _check_supported("packed", packed)
    if channels % 32 == 0:
        return packed.flatten(1)
    return torch.ops.bnn_ext.flatten(packed, channels)


@torch.library.register_fake("bnn_ext::flatten")
def _(packed: Tensor, channels: int) -> Tensor:
    features = channels
    for size in packed.shape[1:-1]:
        features = features * size
    return packed.new_empty((packed.shape[0], words(features)))


def tile_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """Rearranges packed weights: 16 output channels side by side, as the CPU kernels read them.

    Derived data: computed once after loading, never saved. Without it the CPU kernels make it on
    every call; CUDA kernels ignore it.

    Args:
        weight: packed `[out, words]` or `[out, kh, kw, words]`.
        groups: the convolution's groups; `out` must be divisible by it.

    Returns:
        int32 `[groups * ceil(out / groups / 16), kh * kw * words, 16]`, missing channels 0.
    """
    _check_tensor("weight", weight, (torch.int32,))
    if weight.dim() not in (2, 4):
        raise ValueError(f"weight must have 2 or 4 dimensions, found shape {tuple(weight.shape)}")
    _check_integer("groups", groups, 1)
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} output channels, found {groups}"
        )
    _check_supported("weight", weight)
    return torch.ops.bnn_ext.tile_weight(weight, groups)


@torch.library.register_fake("bnn_ext::tile_weight")
def _(weight: Tensor, groups: int = 1) -> Tensor:
    return weight.new_empty(_tiles_shape(weight, groups))


# --- what the fused operators share ---------------------------------------------------------------


def _floats_and_bits(
    results: list[Tensor], dtype: torch.dtype | None, threshold: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    floats = None if dtype is None else results[0]
    return floats, None if threshold is None else results[-1]


def _empty_results(
    input: Tensor,
    shape: Sequence[int],
    channels: int,
    dtype: torch.dtype | None,
    threshold: Tensor | None,
) -> list[Tensor]:
    results = []
    if dtype is not None:
        results.append(input.new_empty((*shape, channels), dtype=dtype))
    if threshold is not None:
        results.append(input.new_empty((*shape, words(channels))))
    return results


def _finish(
    sums: Tensor,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
) -> list[Tensor]:
    """The epilogue in torch's own operators, for devices without a kernel for it."""
    steps = [(STEPS[number], operand) for number, operand in zip(operations, operands, strict=True)]
    y, _ = reference.finish(sums, steps, dtype or torch.float32, None, None)
    assert y is not None
    results = [] if dtype is None else [y]
    if threshold is not None:
        results.append(torch.ops.bnn_ext.pack(y, threshold, flip))
    return results


# --- linear ---------------------------------------------------------------------------------------


def _check_linear(input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None) -> None:
    _check_integer("in_features", in_features, 0)
    _check_sums("in_features", in_features)
    _check_packed("input", input, in_features)
    _check_supported("input", input)
    _check_packed("weight", weight, in_features, rank=2)
    _check_device("weight", weight, input.device)
    _check_tiles(tiles, weight, groups=1)


@_checked_by_kernel
def linear(
    input: Tensor, weight: Tensor, in_features: int, *, tiles: Tensor | None = None
) -> Tensor:
    """Sums of products of ±1: `in_features - 2 popcount(input xor weight)`.

    Args:
        input: packed `[..., ceil(in_features / 32)]`.
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        tiles: `tile_weight(weight)`, if at hand.

    Returns:
        int32 `[..., out]`.
    """
    _check_linear(input, weight, in_features, tiles)
    return torch.ops.bnn_ext.linear(input, weight, in_features, tiles)


@torch.library.register_fake("bnn_ext::linear")
def _(input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@_checked_by_kernel
def linear_float(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """`linear(...) * scale + bias` per output channel.

    The product and the sum are each rounded to float32, then the result once to `dtype`.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        scale, bias: float32 `[out]` or None.
        dtype: float32, float16 or bfloat16.

    Returns:
        `[..., out]` of `dtype`.
    """
    _check_linear(input, weight, in_features, tiles)
    _check_vector("scale", scale, weight.shape[0], torch.float32, input.device)
    _check_vector("bias", bias, weight.shape[0], torch.float32, input.device)
    _check_dtype("dtype", dtype, _FLOATS)
    return torch.ops.bnn_ext.linear_float(input, weight, in_features, scale, bias, dtype, tiles)


@torch.library.register_fake("bnn_ext::linear_float")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=dtype)


@_checked_by_kernel
def linear_bits(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `linear(...) >= threshold` per output channel, `<=` where the flip bit is set.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        threshold: int32 `[out]`.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed `[..., ceil(out / 32)]`.
    """
    _check_linear(input, weight, in_features, tiles)
    _check_tensor("threshold", threshold, (torch.int32,))
    _check_vector("threshold", threshold, weight.shape[0], torch.int32, input.device)
    _check_flip("flip", flip, weight.shape[0], input.device)
    return torch.ops.bnn_ext.linear_bits(input, weight, in_features, threshold, flip, tiles)


@torch.library.register_fake("bnn_ext::linear_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(weight.shape[0])))


def _linear_fused(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    operations = [STEPS.index(name) for name, _ in steps]
    operands = [operand for _, operand in steps]
    results = torch.ops.bnn_ext.linear_fused.default(
        input, weight, in_features, operations, operands, dtype, threshold, flip, tiles
    )
    return _floats_and_bits(results, dtype, threshold)


@_checked_by(_linear_fused)
def linear_fused(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums as floats after elementwise steps, as packed bits, or both from one pass.

    The sums become float32; each step is one operation on them, rounded once:

    - `("multiply", operand)`, `("add", operand)`: scales, biases, residual connections;
    - `("prelu", slope)`: `y if y > 0 else y * slope`;
    - `("maximum", low)`, `("minimum", high)`: the bounds of a clip; NaN stays.

    Args:
        input, weight, in_features, tiles: as for `linear`.
        steps: in this order. An operand is float32 `[out]`, or has the output's shape and is
            float32, float16 or bfloat16.
        dtype: of the floats: float32, float16 or bfloat16; None gives none.
        threshold: float32 `[out]` for the bits `y >= threshold`, of y as rounded to `dtype`; None
            gives none.
        flip: packed `[ceil(out / 32)]`; where its bit is set, a bit is `y <= threshold`.

    Returns:
        `[..., out]` of `dtype` or None; packed `[..., ceil(out / 32)]` or None.
    """
    _check_linear(input, weight, in_features, tiles)
    shape = (*input.shape[:-1], weight.shape[0])
    _check_fused(steps, dtype, threshold, flip, shape, input.device)
    return _linear_fused(input, weight, in_features, steps, dtype, threshold, flip, tiles=tiles)


@torch.library.register_fake("bnn_ext::linear_fused")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    shape = input.shape[:-1]
    return _empty_results(input, shape, weight.shape[0], dtype, threshold)


@torch.library.impl("bnn_ext::linear_fused", "CUDA")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    sums = torch.ops.bnn_ext.linear(input, weight, in_features)
    return _finish(sums, operations, operands, dtype, threshold, flip)


# --- convolution ----------------------------------------------------------------------------------

_ConvArguments = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _check_conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    groups: int,
    pad_value: int,
    tiles: Tensor | None,
) -> _ConvArguments:
    _check_integer("in_channels", in_channels, 0)
    _check_integer("groups", groups, 1)
    if in_channels % groups:
        raise ValueError(f"groups must divide the {in_channels} input channels, found {groups}")
    _check_packed("input", input, in_channels, rank=4)
    _check_supported("input", input)
    _check_packed("weight", weight, in_channels // groups, rank=4)
    _check_device("weight", weight, input.device)
    geometry = _check_geometry(
        tuple(input.shape[1:3]), weight, stride, padding, dilation, groups, pad_value
    )
    _check_sums("weight", weight.shape[1] * weight.shape[2] * in_channels // groups)
    _check_tiles(tiles, weight, groups)
    return geometry


def _check_geometry(
    size: Sequence[int],
    weight: Tensor,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    groups: int,
    pad_value: int,
) -> _ConvArguments:
    """The kernels fit a map of `size`, height and width; `weight` has 4 dimensions."""
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} output channels, found {groups}"
        )
    _check_integer("pad_value", pad_value)
    if pad_value not in (-1, 0, 1):
        raise ValueError(f"pad_value must be -1, 0 or 1, found {pad_value}")
    stride = _pair("stride", stride, 1)
    padding = _pair("padding", padding, 0)
    dilation = _pair("dilation", dilation, 1)
    for axis in (0, 1):
        kernel = weight.shape[1 + axis]
        if kernel < 1 or _conv_size(size[axis], kernel, 1, padding[axis], dilation[axis]) < 1:
            raise ValueError(
                f"weight has kernel size {tuple(weight.shape[1:3])}, which with dilation "
                f"{dilation} does not fit the input's {tuple(size)} padded by {padding}"
            )
    return stride, padding, dilation


def _conv2d_shape(
    batch: int,
    size: Sequence[int],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int]:
    height, width = (
        _conv_size(size[i], weight.shape[1 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)
    )
    return batch, height, width


@_checked_by_kernel
def conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Cross-correlation of ±1 maps and ±1 kernels, as `torch.nn.functional.conv2d` defines it.

    Args:
        input: packed NHWC map, `[N, H, W, ceil(in_channels / 32)]`.
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of real channels.
        stride, padding, dilation: one integer, or two for height and width.
        groups: divides `in_channels` and `out`.
        pad_value: what a padded position holds: 0 adds nothing (as in torch), +1 or -1.
        tiles: `tile_weight(weight, groups)`, if at hand.

    Returns:
        int32 `[N, H', W', out]`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    return torch.ops.bnn_ext.conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )


@torch.library.register_fake("bnn_ext::conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = _conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, weight.shape[0]))


@_checked_by_kernel
def conv2d_float(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """`conv2d(...) * scale + bias` per output channel.

    The product and the sum are each rounded to float32, then the result once to `dtype`.

    Args:
        input ... pad_value, tiles: as for `conv2d`.
        scale, bias: float32 `[out]` or None.
        dtype: float32, float16 or bfloat16.

    Returns:
        `[N, H', W', out]` of `dtype`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_vector("scale", scale, weight.shape[0], torch.float32, input.device)
    _check_vector("bias", bias, weight.shape[0], torch.float32, input.device)
    _check_dtype("dtype", dtype, _FLOATS)
    return torch.ops.bnn_ext.conv2d_float(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        scale,
        bias,
        dtype,
        tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_float")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = _conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, weight.shape[0]), dtype=dtype)


@_checked_by_kernel
def conv2d_bits(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `conv2d(...) >= threshold` per output channel, `<=` where the flip bit is set.

    Args:
        input ... pad_value, tiles: as for `conv2d`.
        threshold: int32 `[out]`.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed NHWC map `[N, H', W', ceil(out / 32)]`.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_tensor("threshold", threshold, (torch.int32,))
    _check_vector("threshold", threshold, weight.shape[0], torch.int32, input.device)
    _check_flip("flip", flip, weight.shape[0], input.device)
    return torch.ops.bnn_ext.conv2d_bits(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        threshold=threshold,
        flip=flip,
        tiles=tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = _conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return input.new_empty((*shape, words(weight.shape[0])))


def _conv2d_fused(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    operations = [STEPS.index(name) for name, _ in steps]
    operands = [operand for _, operand in steps]
    results = torch.ops.bnn_ext.conv2d_fused.default(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        operations,
        operands,
        dtype,
        threshold,
        flip,
        tiles,
    )
    return _floats_and_bits(results, dtype, threshold)


@_checked_by(_conv2d_fused)
def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """`conv2d` with the epilogue of `linear_fused`: floats after elementwise steps, bits, or both.

    Args:
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles: as for
            `conv2d`.
        steps, dtype, threshold, flip: as for `linear_fused`; an operand of the output's shape is
            `[N, H', W', out]`.

    Returns:
        `[N, H', W', out]` of `dtype` or None; packed `[N, H', W', ceil(out / 32)]` or None.
    """
    stride, padding, dilation = _check_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    shape = (
        *_conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation),
        weight.shape[0],
    )
    _check_fused(steps, dtype, threshold, flip, shape, input.device)
    return _conv2d_fused(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        steps,
        dtype,
        threshold,
        flip,
        tiles=tiles,
    )


@torch.library.register_fake("bnn_ext::conv2d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    shape = _conv2d_shape(input.shape[0], input.shape[1:3], weight, stride, padding, dilation)
    return _empty_results(input, shape, weight.shape[0], dtype, threshold)


@torch.library.impl("bnn_ext::conv2d_fused", "CUDA")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
    operations: Sequence[int],
    operands: Sequence[Tensor],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
    tiles: Tensor | None = None,
) -> list[Tensor]:
    sums = torch.ops.bnn_ext.conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value
    )
    return _finish(sums, operations, operands, dtype, threshold, flip)


# --- real inputs ----------------------------------------------------------------------------------

# One operator for all real inputs, whose dtype decides: floats give floats of their dtype, uint8
# images give exact int32 sums; thresholds are float32 or int32 like the sums, as in `pack`.


def _by_torch(op: str) -> Callable[..., Tensor]:
    """The operator in plain torch, for devices without a kernel; `tiles` are of no use there.

    The sums are those of the reference, in float64: of float32 a GPU's own may be far off the bound
    that `binary_weight_linear` states, since torch lets cuDNN round the inputs to TF32.
    """
    schema = getattr(torch.ops.bnn_ext, f"binary_weight_{op}").default._schema
    names = [argument.name for argument in schema.arguments]
    sums_of = reference.real_conv2d_sums if "conv2d" in op else reference.real_linear_sums

    def call(*values: Any, **named: Any) -> Tensor:
        arguments = dict(zip(names, values, strict=False)) | named  # torch leaves out defaults
        scale, bias, threshold, flip, _ = (
            arguments.pop(name, None) for name in ("scale", "bias", "threshold", "flip", "tiles")
        )
        input_dtype = arguments["input"].dtype
        sums = sums_of(**arguments)
        if threshold is not None:
            return pack(sums.to(threshold.dtype), threshold, flip)
        out = reference.finish_real(sums, scale, bias, input_dtype)
        return out.contiguous().permute(0, 3, 1, 2) if "conv2d" in op else out

    return call


for _op in ("linear", "linear_bits", "conv2d", "conv2d_bits"):
    torch.library.impl(f"bnn_ext::binary_weight_{_op}", "CUDA", _by_torch(_op))


def _check_real(name: str, input: Tensor, rank: int | None = None) -> None:
    _check_tensor(name, input, _REAL, rank)
    if input.dim() == 0:
        raise ValueError(f"{name} must have at least 1 dimension, found a scalar")
    _check_supported(name, input)


def _check_real_sums(name: str, input: Tensor, k: int) -> None:
    """Sums of `k` signed values fit into int32 if they are integers."""
    if input.dtype == torch.uint8 and k * 255 >= 2**31:
        raise ValueError(
            f"{name} must give sums below 2**31, found sums of {k} uint8 values with signs"
        )


def _check_affine(input: Tensor, scale: Tensor | None, bias: Tensor | None, channels: int) -> None:
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and input.dtype == torch.uint8:
            raise ValueError(f"{name} must be None for uint8 input, whose sums stay int32")
        _check_vector(name, tensor, channels, torch.float32, input.device)
    _check_no_gradient("input", input)


def _check_thresholds(input: Tensor, threshold: Tensor, flip: Tensor | None, channels: int) -> None:
    dtype = _sum_dtype(input)
    _check_tensor("threshold", threshold, (dtype,))
    _check_vector("threshold", threshold, channels, dtype, input.device)
    _check_flip("flip", flip, channels, input.device)


def _sum_dtype(input: Tensor) -> torch.dtype:
    return torch.int32 if input.dtype == torch.uint8 else torch.float32


def _value_dtype(input: Tensor) -> torch.dtype:
    return torch.int32 if input.dtype == torch.uint8 else input.dtype


def _check_binary_weight_linear(
    input: Tensor, weight: Tensor, in_features: int, tiles: Tensor | None
) -> None:
    _check_integer("in_features", in_features, 0)
    _check_real("input", input)
    if input.shape[-1] != in_features:
        raise ValueError(
            f"input must have {in_features} features in its last dimension, found shape "
            f"{tuple(input.shape)}"
        )
    _check_packed("weight", weight, in_features, rank=2)
    _check_device("weight", weight, input.device)
    _check_real_sums("in_features", input, in_features)
    _check_tiles(tiles, weight, groups=1)


@_checked_by_kernel
def binary_weight_linear(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Real inputs times ±1 weights: `input @ signs.T * scale + bias`.

    Sums of floats are float32, in an order that is the same at every CPU level and in every batch,
    but not torch's: at most `(in_features / 4 + 3) * 2**-24 * sum(abs(input))` off. The product
    with the scale and the sum with the bias are rounded to float32, then the result once to the
    dtype of the input. NaN and infinity do what they do in torch.

    Args:
        input: `[..., in_features]`, float32, float16, bfloat16 or uint8.
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        scale, bias: float32 `[out]` or None; None for uint8.
        tiles: `tile_weight(weight)`, if at hand.

    Returns:
        `[..., out]` in the dtype of the input; for uint8 the int32 sums, exactly.

    Source: "BinaryConnect", 2015 (arXiv:1511.00363), section 2.6: binary weights at test time.
    """
    _check_binary_weight_linear(input, weight, in_features, tiles)
    _check_affine(input, scale, bias, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_linear(input, weight, in_features, scale, bias, tiles)


@torch.library.register_fake("bnn_ext::binary_weight_linear")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=_value_dtype(input))


@_checked_by_kernel
def binary_weight_linear_bits(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs `input @ signs.T >= threshold` per output channel, `<=` where the flip bit is set.

    The sums are those of `binary_weight_linear` before scale, bias and rounding to the dtype of the
    input. NaN gives 0 either way.

    Args:
        input, weight, in_features, tiles: as for `binary_weight_linear`.
        threshold: float32 `[out]`, int32 for uint8 input.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed `[..., ceil(out / 32)]`.
    """
    _check_binary_weight_linear(input, weight, in_features, tiles)
    _check_thresholds(input, threshold, flip, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_linear_bits(
        input, weight, in_features, threshold, flip, tiles
    )


@torch.library.register_fake("bnn_ext::binary_weight_linear_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], words(weight.shape[0])), dtype=torch.int32)


def _check_binary_weight_conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    groups: int,
    pad_value: int,
    tiles: Tensor | None,
) -> _ConvArguments:
    _check_integer("in_channels", in_channels, 0)
    _check_integer("groups", groups, 1)
    if in_channels % groups:
        raise ValueError(f"groups must divide the {in_channels} input channels, found {groups}")
    _check_real("input", input, rank=4)
    if input.shape[1] != in_channels:
        raise ValueError(
            f"input must have {in_channels} channels, found shape {tuple(input.shape)}"
        )
    _check_packed("weight", weight, in_channels // groups, rank=4)
    _check_device("weight", weight, input.device)
    geometry = _check_geometry(
        tuple(input.shape[2:]), weight, stride, padding, dilation, groups, pad_value
    )
    _check_real_sums("weight", input, weight.shape[1] * weight.shape[2] * in_channels // groups)
    _check_tiles(tiles, weight, groups)
    return geometry


@_checked_by_kernel
def binary_weight_conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
) -> Tensor:
    """Cross-correlation of real maps and ±1 kernels, `* scale + bias` per output channel.

    Sums round as those of `binary_weight_linear`: off by at most `(kh * kw *
    ceil(in_channels / groups / 4) + 3) * 2**-24 * sum(abs(x))` over the inputs of a window.

    Args:
        input: `[N, in_channels, H, W]` of any strides, float32, float16, bfloat16 or uint8.
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of input channels.
        stride, padding, dilation: one integer, or two for height and width.
        groups: divides `in_channels` and `out`.
        pad_value: what a padded position holds: 0 adds nothing (as in torch), +1 or -1.
        scale, bias: float32 `[out]` or None; None for uint8.
        tiles: `tile_weight(weight, groups)`, if at hand.

    Returns:
        `[N, out, H', W']` in torch's channels_last memory format whatever that of the input, in the
        dtype of the input; for uint8 the int32 sums, exactly.
    """
    stride, padding, dilation = _check_binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_affine(input, scale, bias, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, scale, bias, tiles
    )


@torch.library.register_fake("bnn_ext::binary_weight_conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = _conv2d_shape(input.shape[0], input.shape[2:], weight, stride, padding, dilation)
    nhwc = input.new_empty((*shape, weight.shape[0]), dtype=_value_dtype(input))
    return nhwc.permute(0, 3, 1, 2)


@_checked_by_kernel
def binary_weight_conv2d_bits(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """Packs the sums of `binary_weight_conv2d` `>= threshold`, `<=` where the flip bit is set.

    Args:
        input ... pad_value, tiles: as for `binary_weight_conv2d`.
        threshold: float32 `[out]`, int32 for uint8 input.
        flip: packed `[ceil(out / 32)]` or None.

    Returns:
        packed NHWC map `[N, H', W', ceil(out / 32)]`.
    """
    stride, padding, dilation = _check_binary_weight_conv2d(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value, tiles
    )
    _check_thresholds(input, threshold, flip, weight.shape[0])
    return torch.ops.bnn_ext.binary_weight_conv2d_bits(
        input,
        weight,
        in_channels,
        stride,
        padding,
        dilation,
        groups,
        pad_value,
        threshold=threshold,
        flip=flip,
        tiles=tiles,
    )


@torch.library.register_fake("bnn_ext::binary_weight_conv2d_bits")
def _(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    shape = _conv2d_shape(input.shape[0], input.shape[2:], weight, stride, padding, dilation)
    return input.new_empty((*shape, words(weight.shape[0])), dtype=torch.int32)


# --- pooling --------------------------------------------------------------------------------------


@_checked_by_kernel
def max_pool2d(
    input: Tensor,
    kernel_size: _Pair,
    stride: _Pair | None = None,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    ceil_mode: bool = False,
    minimum: Tensor | None = None,
) -> Tensor:
    """Max-pool of a packed ±1 map: the or of the bits in each window.

    Args:
        input: packed NHWC map `[N, H, W, words]`.
        kernel_size, stride, padding, dilation, ceil_mode: as for `torch.nn.functional.max_pool2d`.
        minimum: packed `[words]`; channels whose bit is set take the minimum (the and) instead, as
            a decreasing function after a max-pool of its argument needs.

    Returns:
        packed NHWC map `[N, H', W', words]`.
    """
    _check_tensor("input", input, (torch.int32,), rank=4)
    _check_supported("input", input)
    kernel_size = _pair("kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else _pair("stride", stride, 1)
    padding = _pair("padding", padding, 0)
    dilation = _pair("dilation", dilation, 1)
    for axis in (0, 1):
        if 2 * padding[axis] > kernel_size[axis]:
            raise ValueError(
                f"padding must be at most half of kernel_size {kernel_size}, found {padding}"
            )
        size = input.shape[1 + axis]
        window = (kernel_size[axis], stride[axis], padding[axis], dilation[axis])
        if size < 1 or _pool_size(size, *window, ceil_mode) < 1:
            raise ValueError(
                f"kernel_size {kernel_size} with dilation {dilation} does not fit the input's "
                f"{tuple(input.shape[1:3])} padded by {padding}"
            )
    if minimum is not None:
        _check_flip("minimum", minimum, 32 * input.shape[-1], input.device)
    return torch.ops.bnn_ext.max_pool2d(
        input, kernel_size, stride, padding, dilation, ceil_mode, minimum
    )


@torch.library.register_fake("bnn_ext::max_pool2d")
def _(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    minimum: Tensor | None = None,
) -> Tensor:
    height, width = (
        _pool_size(
            input.shape[1 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode
        )
        for i in (0, 1)
    )
    return input.new_empty((input.shape[0], height, width, input.shape[3]))
