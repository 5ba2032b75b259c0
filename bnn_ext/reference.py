"""Every operator of `bnn_ext.ops` in a few lines of plain torch: the specification.

Slow and obvious on purpose. Tests compare the kernels with these functions, bit for bit. Shapes
and arguments are those of `bnn_ext.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 32

# A step of an epilogue: its name and its operands.
Step = tuple[str] | tuple[str, Tensor] | tuple[str, Tensor, Tensor]


def words(bits: int) -> int:
    """Number of 32-bit words that hold `bits` bits."""
    return (bits + WORD_BITS - 1) // WORD_BITS


def sign(x: Tensor) -> Tensor:
    """+1 where `x >= 0`, else -1, in the dtype of `x`; -0.0 gives +1 and NaN gives -1.

    The one definition of sign in this package: float layers, packers and kernels agree with it.
    """
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def pack_bits(bits: Tensor) -> Tensor:
    """Bool `[..., C]` -> int32 `[..., words(C)]`, least significant bit first, tail bits 0."""
    channels = bits.shape[-1]
    bits = F.pad(bits.long(), (0, words(channels) * WORD_BITS - channels))
    bits = bits.unflatten(-1, (words(channels), WORD_BITS))
    return (bits << torch.arange(WORD_BITS, device=bits.device)).sum(-1).to(torch.int32)


def unpack_bits(packed: Tensor, channels: int) -> Tensor:
    """int32 `[..., words]` -> bool `[..., channels]`."""
    bits = (packed.unsqueeze(-1) >> torch.arange(WORD_BITS, device=packed.device)) & 1
    return bits.flatten(-2)[..., :channels].bool()


def compare(x: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
    """Bool: `x >= threshold`, or `x <= threshold` in the channels whose flip bit is set."""
    if flip is None:
        return x >= threshold
    return torch.where(unpack_bits(flip, x.shape[-1]), x <= threshold, x >= threshold)


def pack(input: Tensor, threshold: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    if threshold is None:
        return pack_bits(input >= 0)
    return pack_bits(
        compare(input if input.dtype == torch.int32 else input.float(), threshold, flip)
    )


def unpack(packed: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.where(unpack_bits(packed, channels), 1, -1).to(dtype)


def flatten(packed: Tensor, channels: int) -> Tensor:
    return pack_bits(unpack_bits(packed, channels).flatten(1))


def select_channels(inputs: Sequence[Tensor], channels: Sequence[int], index: Tensor) -> Tensor:
    bits = [unpack_bits(packed, count) for packed, count in zip(inputs, channels, strict=True)]
    return pack_bits(torch.cat(bits, -1)[..., index])


def finish_float(
    sums: Tensor, scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`sums * scale + bias` in float32, two roundings, then one rounding to `dtype`."""
    out = sums.float()
    if scale is not None:
        out = out * scale
    if bias is not None:
        out = out + bias
    return out.to(dtype)


def multiply_add(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """`x * factor + addend` of float32 values, rounded once as if the sum were exact.

    Their product is exact in float64. Rounding the sum to float64 and then to float32 could err
    where the first rounding ends halfway between two float32 values. So the first goes to odd: of
    the two float64 values around an inexact sum it takes the one with an odd last bit, which lies
    halfway between no two float32 values and on the sum's side of all that do.
    """
    product = x.double() * factor
    total = product + addend
    # The rest that rounding left out, which float64 can represent (Knuth's TwoSum).
    back = total - product
    rest = (product - (total - back)) + (addend - back)
    infinity = torch.full_like(total, torch.inf)
    toward_rest = torch.nextafter(total, torch.where(rest > 0, infinity, -infinity))
    even = (total.view(torch.int64) & 1) == 0
    inexact = (rest > 0) | (rest < 0)  # not where an infinity made it NaN
    return torch.where(even & inexact, toward_rest, total).float()


def apply_step(y: Tensor, name: str, *operands: Tensor) -> Tensor:
    """One step of an epilogue on float32 values; the operands broadcast against them."""
    if name == "multiply_add":
        return multiply_add(y, *operands)
    if name in ("float16", "bfloat16"):
        return y.to(getattr(torch, name)).float()
    operand = operands[0].float()
    if name == "multiply":
        return y * operand
    if name == "divide":
        return y / operand
    if name == "add":
        return y + operand
    if name == "prelu":
        return torch.where(y > 0, y, y * operand)
    if name == "maximum":
        return torch.where(y < operand, operand, y)  # NaN stays
    if name == "minimum":
        return torch.where(y > operand, operand, y)
    raise ValueError(f"no step is named {name!r}")


def finish(
    sums: Tensor,
    steps: Sequence[Step],
    dtype: torch.dtype | None,
    threshold: Tensor | None,
    flip: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The steps on `sums` in float32; the values in `dtype`; the bits of those."""
    y = sums.float()
    for name, *operands in steps:
        y = apply_step(y, name, *operands)
    if dtype is not None:
        y = y.to(dtype)
    bits = None if threshold is None else pack_bits(compare(y.float(), threshold, flip))
    return (None if dtype is None else y), bits


def linear(input: Tensor, weight: Tensor, in_features: int) -> Tensor:
    x, w = unpack(input, in_features, torch.float64), unpack(weight, in_features, torch.float64)
    return F.linear(x, w).to(torch.int32)


def linear_float(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return finish_float(linear(input, weight, in_features), scale, bias, dtype)


def linear_bits(
    input: Tensor, weight: Tensor, in_features: int, threshold: Tensor, flip: Tensor | None = None
) -> Tensor:
    return pack_bits(compare(linear(input, weight, in_features), threshold, flip))


def linear_fused(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    return finish(linear(input, weight, in_features), steps, dtype, threshold, flip)


def conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
) -> Tensor:
    x = unpack(input, in_channels, torch.float64).permute(0, 3, 1, 2)
    w = unpack(weight, in_channels // groups, torch.float64).permute(0, 3, 1, 2)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(pad_value))
    out = F.conv2d(x, w, None, stride, 0, dilation, groups)
    return out.permute(0, 2, 3, 1).to(torch.int32).contiguous()


def conv2d_float(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    sums = conv2d(input, weight, in_channels, stride, padding, dilation, groups, pad_value)
    return finish_float(sums, scale, bias, dtype)


def conv2d_bits(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
) -> Tensor:
    sums = conv2d(input, weight, in_channels, stride, padding, dilation, groups, pad_value)
    return pack_bits(compare(sums, threshold, flip))


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = torch.float32,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    sums = conv2d(input, weight, in_channels, stride, padding, dilation, groups, pad_value)
    return finish(sums, steps, dtype, threshold, flip)


def elementwise(
    input: Tensor,
    steps: Sequence[Step] = (),
    dtype: torch.dtype | None = None,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    return finish(input, steps, dtype, threshold, flip)


def real_linear_sums(input: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Sums of real values with signs, in float64: exact for uint8 and nearly so for float32."""
    return F.linear(input.double(), unpack(weight, in_features, torch.float64))


def finish_real(
    sums: Tensor, scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The values that inputs of `dtype` give: of uint8 the sums, as integers."""
    return sums.to(torch.int32) if dtype == torch.uint8 else finish_float(sums, scale, bias, dtype)


def binary_weight_linear(
    input: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    sums = real_linear_sums(input, weight, in_features)
    return finish_real(sums, scale, bias, input.dtype)


def binary_weight_linear_bits(
    input: Tensor, weight: Tensor, in_features: int, threshold: Tensor, flip: Tensor | None = None
) -> Tensor:
    sums = real_linear_sums(input, weight, in_features)
    return pack_bits(compare(sums.to(threshold.dtype), threshold, flip))


def real_conv2d_sums(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
) -> Tensor:
    """`[N, H', W', out]`, like `real_linear_sums`."""
    w = unpack(weight, in_channels // groups, torch.float64).permute(0, 3, 1, 2)
    padded = (padding[1], padding[1], padding[0], padding[0])
    x = F.pad(input.double(), padded, value=float(pad_value))
    return F.conv2d(x, w, None, stride, 0, dilation, groups).permute(0, 2, 3, 1)


def binary_weight_conv2d(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    sums = real_conv2d_sums(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value
    )
    out = finish_real(sums, scale, bias, input.dtype).permute(0, 3, 1, 2)
    return out.contiguous(memory_format=torch.channels_last)


def binary_weight_conv2d_bits(
    input: Tensor,
    weight: Tensor,
    in_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    *,
    threshold: Tensor,
    flip: Tensor | None = None,
) -> Tensor:
    sums = real_conv2d_sums(
        input, weight, in_channels, stride, padding, dilation, groups, pad_value
    )
    return pack_bits(compare(sums.to(threshold.dtype), threshold, flip))


def max_pool2d(
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
    minimum: Tensor | None = None,
) -> Tensor:
    channels = input.shape[-1] * WORD_BITS
    bits = unpack_bits(input, channels)
    lowest = torch.zeros(channels, dtype=torch.bool, device=input.device)
    if minimum is not None:
        lowest = unpack_bits(minimum, channels)
    x = torch.where(bits ^ lowest, 1.0, -1.0).permute(0, 3, 1, 2)
    x = F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode).permute(0, 2, 3, 1)
    return pack_bits((x > 0) ^ lowest)


def max_pool2d_float(
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    x = input.permute(0, 3, 1, 2)
    x = F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    return x.permute(0, 2, 3, 1).contiguous()


def avg_pool2d(
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    x = input.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    window = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return F.avg_pool2d(x, *window).permute(0, 2, 3, 1).contiguous()


def global_avg_pool2d(input: Tensor) -> Tensor:
    return avg_pool2d(input, (input.shape[1], input.shape[2]))
