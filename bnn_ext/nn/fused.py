"""Packed layers that give floats, after any steps, and bits of these floats at the same time.

A step is one of `bnn_ext.ops.STEPS` with its operands, which are buffers of the layer, or
"residual": the addition of a further input, real values in the shape of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bnn_ext import ops
from bnn_ext.nn.packed import GEOMETRY, OperatorLayer, float_dtype, geometry, window
from bnn_ext.ops.epilogue import operand_count
from bnn_ext.reference import words

_Pair = tuple[int, int]

RESIDUAL = "residual"


class _Fused(OperatorLayer):
    """Steps, and what they give: floats, bits, or a tuple of both."""

    threshold: Tensor | None
    flip: Tensor | None

    def __init__(
        self,
        operations: Sequence[str],
        floats: bool,
        dtype: str,
        threshold: Tensor | None,
        flip: Tensor | None,
        operands: dict[str, Tensor],
    ) -> None:
        super().__init__()
        known = (*ops.STEPS, RESIDUAL)
        for operation in operations:
            if operation not in known:
                raise ValueError(f"operations must be of {', '.join(known)}, found {operation!r}")
        if not isinstance(floats, bool):
            raise TypeError(f"floats must be a bool, found {type(floats).__name__}")
        if not floats and threshold is None:
            raise ValueError("threshold must be given where floats is False, found None")
        names = [f"operand_{i}" for i in range(sum(map(_operands, operations)))]
        if sorted(operands) != sorted(names):
            raise ValueError(f"operands must be {', '.join(names)}, found {', '.join(operands)}")
        self.operations = tuple(operations)
        self.floats = floats
        self.dtype = dtype
        self.float_dtype = float_dtype(dtype)
        for name in names:
            self.register_buffer(name, operands[name])
        self.register_buffer("threshold", threshold)
        self.register_buffer("flip", flip)

    @property
    def residuals(self) -> int:
        """How many further inputs there are."""
        return self.operations.count(RESIDUAL)

    def _end(self, residuals: Sequence[Any]) -> dict[str, Any]:
        """The arguments that make floats and bits of the sums."""
        steps: list[tuple[Any, ...]] = []
        given, count = iter(residuals), 0
        for operation in self.operations:
            if operation == RESIDUAL:
                steps.append(("add", next(given)))
                continue
            own = [getattr(self, f"operand_{count + i}") for i in range(_operands(operation))]
            count += len(own)
            steps.append((operation, *own))
        return {
            "steps": steps,
            "dtype": self.float_dtype if self.floats else None,
            "threshold": self.threshold,
            "flip": self.flip,
        }


def _operands(operation: str) -> int:
    """Buffers of an operation."""
    return 0 if operation == RESIDUAL else operand_count(operation)


class FusedLinear(_Fused):
    """`BinaryLinear` on packed bits and what follows it.

    Shape: input packed `[..., ceil(in_features / 32)]`, residuals `[..., out]`; output float
    `[..., out]`, packed `[..., ceil(out / 32)]`, or both.

    Args:
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        operations: names of the steps.
        floats: whether floats are wanted.
        dtype: of the floats.
        threshold, flip: float32 `[out]` and packed `[ceil(out / 32)]`, for packed output.
        operands: `operand_0`, `operand_1`, ... float32 `[out]`: of the steps, one after the other.
    """

    attribute_names = ("in_features", "operations", "floats", "dtype")
    weight: Tensor
    tiles: Tensor

    def __init__(
        self,
        weight: Tensor,
        in_features: int,
        operations: Sequence[str],
        floats: bool = True,
        dtype: str = "float32",
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
        **operands: Tensor,
    ) -> None:
        super().__init__(operations, floats, dtype, threshold, flip, operands)
        self.in_features = in_features
        self.register_buffer("weight", weight)
        self._derive()
        self._check((1, words(in_features)), [(1, weight.shape[0])] * self.residuals)

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight), persistent=False)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_features": self.in_features}
        return "linear_fused", arguments | self._end(inputs[1:]) | {"tiles": self.tiles}


class FusedConv2d(_Fused):
    """`BinaryConv2d` on packed bits and what follows it.

    Shape: input packed `[N, H, W, ceil(in_channels / 32)]`, residuals `[N, out, H', W']`; output
    float `[N, out, H', W']` in torch.channels_last, packed `[N, H', W', ceil(out / 32)]`, or both.

    Args:
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of real channels.
        stride, padding, dilation, groups, pad_value: as for `bnn_ext.ops.conv2d`.
        operations, floats, dtype, threshold, flip, operands: as for `FusedLinear`.
    """

    attribute_names = ("in_channels", *GEOMETRY, "operations", "floats", "dtype")
    weight: Tensor
    tiles: Tensor

    def __init__(
        self,
        weight: Tensor,
        in_channels: int,
        stride: _Pair,
        padding: _Pair,
        dilation: _Pair,
        groups: int,
        pad_value: int,
        operations: Sequence[str],
        floats: bool = True,
        dtype: str = "float32",
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
        **operands: Tensor,
    ) -> None:
        super().__init__(operations, floats, dtype, threshold, flip, operands)
        self.map_inputs = range(1, 1 + self.residuals)
        self.gives_map = True
        self.in_channels = in_channels
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups = groups
        self.pad_value = pad_value
        self.register_buffer("weight", weight)
        self._derive()
        size = window(weight.shape[1:3], dilation)
        residual = (
            1,
            weight.shape[0],
            *(1 + 2 * p // s for p, s in zip(padding, stride, strict=True)),
        )
        self._check((1, *size, words(in_channels)), [residual] * self.residuals)

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight, self.groups), persistent=False)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_channels": self.in_channels}
        arguments |= geometry(self) | self._end(inputs[1:]) | {"tiles": self.tiles}
        return "conv2d_fused", arguments


class Elementwise(_Fused):
    """The steps alone, on real values.

    Shape: input and residuals `[N, C, H, W]` with `is_map`, else `[..., C]`; output float of the
    same shape (a map in torch.channels_last), packed, or both.

    Args:
        is_map: whether channels are dimension 1 rather than the last one.
        operations, floats, dtype, threshold, flip, operands: as for `FusedLinear`; real values are
            of this dtype as well.
    """

    attribute_names = ("is_map", "operations", "floats", "dtype")

    def __init__(
        self,
        is_map: bool,
        operations: Sequence[str],
        floats: bool = True,
        dtype: str = "float32",
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
        **operands: Tensor,
    ) -> None:
        super().__init__(operations, floats, dtype, threshold, flip, operands)
        if not isinstance(is_map, bool):
            raise TypeError(f"is_map must be a bool, found {type(is_map).__name__}")
        self.is_map = self.gives_map = is_map
        self.map_inputs = range(1 + self.residuals) if is_map else ()
        vectors = [t for name, t in self.tensors().items() if name != "flip"]
        shape = (1, vectors[0].shape[0] if vectors else 1, *[1] * (2 * is_map))
        self._check(shape, [shape] * self.residuals, dtype=self.float_dtype)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        return "elementwise", {"input": inputs[0]} | self._end(inputs[1:])
