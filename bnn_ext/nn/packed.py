"""Inference layers on packed bits, as `bnn_ext.convert` makes them.

Maps between packed layers are NHWC words, `[N, H, W, ceil(C / 32)]`; real maps are NCHW as
everywhere in torch. A layer is built from its tensors and a few plain attributes, and gives both
back through `tensors()` and `attributes()`: that is what a model file holds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnn_ext import ops
from bnn_ext.reference import words

_Pair = tuple[int, int]
GEOMETRY = ("stride", "padding", "dilation", "groups", "pad_value")  # of a convolution


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a `[N, C, H, W]` tensor has the strides of torch.channels_last."""
    if tensor.dim() != 4:
        return False
    return tensor.stride() == torch.empty_like(tensor, memory_format=torch.channels_last).stride()


def contiguous(map: Tensor) -> Tensor:
    """A copy whose strides are those of a new tensor."""
    # Not contiguous(), which leaves the strides of dimensions of size 1; torch looks at them.
    return map.clone(memory_format=torch.contiguous_format)


class PackedLayer(nn.Module):
    """What all packed layers share: tensors as buffers, everything else as JSON attributes."""

    attribute_names: tuple[str, ...] = ()

    def attributes(self) -> dict[str, Any]:
        """The constructor's arguments that are not tensors, as JSON can hold them."""
        values = {name: getattr(self, name) for name in self.attribute_names}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The constructor's arguments that are tensors, without those that are None."""
        skipped = self._non_persistent_buffers_set
        return {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and name not in skipped
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.attributes().items())

    def _derive(self) -> None:
        """Makes the buffers that follow from others, after construction, loading and moving."""

    def _check(
        self,
        input: Sequence[int],
        others: Sequence[Sequence[int]] = (),
        dtype: torch.dtype = torch.int32,
    ) -> None:
        """Runs on meta tensors: the operators find every argument that does not fit the others.

        Args:
            input: shape of the first input.
            others: shapes of further ones, of float32.
            dtype: of the first input.
        """
        buffers = {name: buffer.to("meta") for name, buffer in self.named_buffers()}
        inputs = (
            torch.empty(input, dtype=dtype, device="meta"),
            *(torch.empty(shape, dtype=torch.float32, device="meta") for shape in others),
        )
        functional_call(self, buffers, inputs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._derive()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        # Thresholds, scales and words keep their dtype under .half() and the like; only their
        # device changes.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        before = self._device_types()
        super()._apply(move, recurse)
        if self._device_types() != before:  # each has a layout of its own for derived buffers
            self._derive()
        return self

    def _device_types(self) -> set[str]:
        return {buffer.device.type for buffer in self.buffers()}


class OperatorLayer(PackedLayer):
    """A layer whose work is one of our operators."""

    # The operators have channels last: which inputs and whether the floats that come out are real
    # maps, which in torch are [N, C, H, W].
    map_inputs: Collection[int] = ()
    gives_map = False

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        """The operator that does the layer's work, and its arguments by name.

        Args:
            inputs: tensors, or names that stand for them in a `bnn_ext.ops.Sequence`. Real maps
                are `[N, H, W, C]`.
        """
        raise NotImplementedError(type(self).__name__)

    def forward(self, *inputs: Tensor) -> Any:
        given = [x.permute(0, 2, 3, 1) if i in self.map_inputs else x for i, x in enumerate(inputs)]
        operator, arguments = self.call(given)
        first = next(iter(arguments))  # the input; operators that get it by position check faster
        results = getattr(ops, operator)(arguments.pop(first), **arguments)
        if isinstance(results, Tensor):
            return results.permute(0, 3, 1, 2) if self.gives_map else results
        floats, bits = results
        if floats is not None and self.gives_map:
            floats = floats.permute(0, 3, 1, 2)
        if floats is None or bits is None:
            return bits if floats is None else floats
        return floats, bits


def check_bool(name: str, value: bool) -> None:
    """The attribute is a bool, which a file may have given."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, found {type(value).__name__}")


def geometry(layer: Any) -> dict[str, Any]:
    """The arguments of a convolution that its layer has as attributes."""
    return {name: getattr(layer, name) for name in GEOMETRY}


def in_format(output: Tensor, layer: Any) -> Tensor:
    """Floats of a convolution in the layer's memory format; bits as they are."""
    if layer.threshold is not None or layer.channels_last:
        return output
    return contiguous(output)


def window(kernel_size: Sequence[int], dilation: Sequence[int]) -> _Pair:
    """Height and width that a window spans."""
    vertical, horizontal = ((k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True))
    return vertical, horizontal


class Pack(OperatorLayer):
    """Real values to bits: the sign, or a comparison with a threshold per channel.

    Shape: input `[N, C, H, W]` with `is_map`, else `[..., C]`; output `[N, H, W, words]` or
    `[..., words]`.

    Args:
        is_map: whether channels are dimension 1 rather than the last one.
        threshold, flip: as for `bnn_ext.ops.pack`.
    """

    attribute_names = ("is_map",)
    threshold: Tensor | None
    flip: Tensor | None

    def __init__(
        self, is_map: bool, threshold: Tensor | None = None, flip: Tensor | None = None
    ) -> None:
        super().__init__()
        check_bool("is_map", is_map)
        self.is_map = is_map
        self.map_inputs = (0,) if is_map else ()
        self.register_buffer("threshold", threshold)
        self.register_buffer("flip", flip)
        channels = 1 if threshold is None else threshold.shape[0]
        self._check((1, channels, *([1, 1] if is_map else [])), dtype=torch.float32)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        return "pack", {"input": inputs[0], "threshold": self.threshold, "flip": self.flip}

    def forward(self, *inputs: Tensor) -> Tensor:
        (input,) = inputs
        if self.is_map and input.dim() != 4:
            raise ValueError(f"input must be [N, C, H, W], found shape {tuple(input.shape)}")
        bits: Tensor = super().forward(input)
        return bits


class PackedProduct(OperatorLayer):
    """A product with packed weights: bits out if there is a threshold, floats otherwise."""

    weight: Tensor
    tiles: Tensor
    scale: Tensor | None
    bias: Tensor | None
    threshold: Tensor | None
    flip: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        threshold: Tensor | None,
        flip: Tensor | None,
    ) -> None:
        super().__init__()
        if threshold is not None and (scale is not None or bias is not None):
            raise ValueError("threshold must stand alone, found a scale or a bias beside it")
        if flip is not None and threshold is None:
            raise ValueError("flip needs a threshold, found threshold=None")
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("threshold", threshold)
        self.register_buffer("flip", flip)

    def _end(self) -> dict[str, Any]:
        """The arguments that make bits or floats of the sums."""
        if self.threshold is not None:
            return {"threshold": self.threshold, "flip": self.flip, "tiles": self.tiles}
        return {"scale": self.scale, "bias": self.bias, "tiles": self.tiles}


def float_dtype(name: str) -> torch.dtype:
    """The dtype of that name, one of those that the operators give."""
    choices = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in choices:
        raise ValueError(f"dtype must be one of {', '.join(choices)}, found {name!r}")
    return choices[name]


class PackedLinear(PackedProduct):
    """`BinaryLinear` on packed bits.

    Shape: input packed `[..., ceil(in_features / 32)]`; output float `[..., out]`, or packed
    `[..., ceil(out / 32)]` with a threshold.

    Args:
        weight: packed `[out, ceil(in_features / 32)]`.
        in_features: number of real bits in a row.
        scale, bias: float32 `[out]` or None, for float output.
        threshold, flip: int32 `[out]` and packed `[ceil(out / 32)]`, for packed output.
        dtype: "float32", "float16" or "bfloat16", of float output.
    """

    attribute_names = ("in_features", "dtype")

    def __init__(
        self,
        weight: Tensor,
        in_features: int,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        threshold: Tensor | None = None,
        flip: Tensor | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(weight, scale, bias, threshold, flip)
        self.dtype = dtype
        self.float_dtype = float_dtype(dtype)
        self.in_features = in_features
        self._derive()
        self._check((1, words(in_features)))

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight), persistent=False)

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_features": self.in_features}
        if self.threshold is not None:
            return "linear_bits", arguments | self._end()
        return "linear_float", arguments | self._end() | {"dtype": self.float_dtype}


class PackedConv2d(PackedProduct):
    """`BinaryConv2d` on packed bits.

    Shape: input packed `[N, H, W, ceil(in_channels / 32)]`; output float `[N, out, H', W']`, or
    packed `[N, H', W', ceil(out / 32)]` with a threshold.

    Args:
        weight: packed `[out, kh, kw, ceil(in_channels / groups / 32)]`.
        in_channels: number of real channels.
        stride, padding, dilation, groups, pad_value: as for `bnn_ext.ops.conv2d`.
        channels_last: the memory format of float output: that of the original layer, since the sums
            of a real layer behind it round in another order for another format.
        scale, bias, threshold, flip, dtype: as for `PackedLinear`.
    """

    attribute_names = ("in_channels", *GEOMETRY, "channels_last", "dtype")

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
        dtype: str = "float32",
    ) -> None:
        super().__init__(weight, scale, bias, threshold, flip)
        self.dtype = dtype
        self.float_dtype = float_dtype(dtype)
        check_bool("channels_last", channels_last)
        self.in_channels = in_channels
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups = groups
        self.pad_value = pad_value
        self.channels_last = channels_last
        self._derive()
        self._check((1, *window(weight.shape[1:3], dilation), words(in_channels)))

    def _derive(self) -> None:
        self.register_buffer("tiles", ops.tile_weight(self.weight, self.groups), persistent=False)

    @property
    def gives_map(self) -> bool:  # type: ignore[override]
        return self.threshold is None

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"input": inputs[0], "weight": self.weight, "in_channels": self.in_channels}
        arguments |= geometry(self) | self._end()
        if self.threshold is not None:
            return "conv2d_bits", arguments
        return "conv2d_float", arguments | {"dtype": self.float_dtype}

    def forward(self, *inputs: Tensor) -> Tensor:
        return in_format(super().forward(*inputs), self)


class PackedMaxPool2d(OperatorLayer):
    """Max-pool of a packed map; see `bnn_ext.ops.max_pool2d`."""

    attribute_names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    minimum: Tensor | None

    def __init__(
        self,
        kernel_size: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        ceil_mode: bool = False,
        minimum: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_bool("ceil_mode", ceil_mode)
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)
        self.padding, self.dilation = tuple(padding), tuple(dilation)
        self.ceil_mode = ceil_mode
        self.register_buffer("minimum", minimum)
        channel_words = 1 if minimum is None else minimum.shape[0]
        self._check((1, *window(self.kernel_size, self.dilation), channel_words))

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        window = {name: getattr(self, name) for name in self.attribute_names}
        return "max_pool2d", {"input": inputs[0], **window, "minimum": self.minimum}


class PackedFlatten(OperatorLayer):
    """A packed map to packed rows, in the order height, width, channel."""

    attribute_names = ("channels",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self._check((1, 1, 1, words(channels)))

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        return "flatten", {"packed": inputs[0], "channels": self.channels}


class SelectChannels(OperatorLayer):
    """Chosen channels of packed values side by side; see `bnn_ext.ops.select_channels`.

    Shape: inputs packed `[..., ceil(channels[i] / 32)]`, output packed `[..., ceil(C / 32)]`.

    Args:
        channels: number of channels of each input.
        index: int32 `[C]`: channel j of the result is channel index[j] of all inputs in a row.
    """

    attribute_names = ("channels",)
    index: Tensor

    def __init__(self, channels: Sequence[int], index: Tensor) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("index", index)
        inputs = [
            torch.empty((0, words(count)), dtype=torch.int32, device="meta")
            for count in self.channels
        ]
        ops.select_channels(inputs, self.channels, index.to("meta"))  # sees all but the values
        if not bool(((index >= 0) & (index < sum(self.channels))).all()):
            raise ValueError(
                f"index must be in 0..{sum(self.channels) - 1}, found {index.min()}..{index.max()}"
            )

    def call(self, inputs: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        arguments = {"inputs": list(inputs), "channels": self.channels, "index": self.index}
        return "select_channels", arguments
