"""Calls of torch inside a converted network: what is not binary stays as the model computed it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnn_ext.nn.packed import PackedLayer

# Operators that a file may name: functions of their arguments, and of nothing else.
SAVED = frozenset(
    """
    _adaptive_avg_pool2d.default _log_softmax.default _softmax.default _to_copy.default
    abs.default add.Scalar add.Tensor addcmul.default addmm.default amax.default argmax.default
    avg_pool1d.default avg_pool2d.default avg_pool3d.default batch_norm.default bmm.default
    cat.default celu.default channel_shuffle.default clamp.default clamp_max.default
    clamp_min.default constant_pad_nd.default convolution.default copysign.Tensor cumsum.default
    div.Scalar div.Tensor elu.default eq.Scalar eq.Tensor erf.default exp.default expand.default
    flatten.using_ints flip.default floor.default full_like.default ge.Scalar ge.Tensor
    gelu.default getitem group_norm.default gt.Scalar gt.Tensor hardsigmoid.default
    hardswish.default hardtanh.default index_select.default le.Scalar le.Tensor leaky_relu.default
    linear.default log.default logical_and.default logical_not.default logical_or.default
    lt.Scalar lt.Tensor max_pool2d.default max_pool3d_with_indices.default maximum.default
    mean.default mean.dim minimum.default mish.default mm.default mul.Scalar mul.Tensor
    native_layer_norm.default ne.Scalar ne.Tensor neg.default ones_like.default permute.default
    pixel_shuffle.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default
    reciprocal.default reflection_pad2d.default relu.default relu6.default
    replication_pad2d.default reshape.default roll.default round.default rsqrt.default rsub.Scalar
    rsub.Tensor select.int sgn.default sigmoid.default sign.default silu.default slice.Tensor
    softplus.default split.Tensor split_with_sizes.default sqrt.default squeeze.default
    squeeze.dim stack.default sub.Scalar sub.Tensor sum.dim_IntList t.default tanh.default
    threshold.default transpose.int unsqueeze.default upsample_bilinear2d.default
    upsample_bilinear2d.vec upsample_nearest2d.default upsample_nearest2d.vec where.ScalarOther
    where.ScalarSelf where.self zeros_like.default
    """.split()
)
_ITEM = "getitem"  # of a call with several results

# What JSON cannot hold, by the references that stand for it.
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CONSTANTS: dict[tuple[str, str], Any] = {
    **{("dtype", str(dtype).removeprefix("torch.")): dtype for dtype in (*_DTYPES, *_INTEGERS)},
    **{("float", name): float(name) for name in ("inf", "-inf", "nan")},
}


def call_name(target: Callable[..., Any]) -> str:
    """The name by which `TorchCall` knows an operator."""
    if getattr(target, "__name__", "") == _ITEM:
        return _ITEM
    schema = target._schema  # type: ignore[attr-defined]
    return f"{schema.name.removeprefix('aten::')}.{schema.overload_name or 'default'}"


def to_json(value: Any) -> Any:
    """An argument that is no tensor, as JSON can hold it."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"arguments must be plain values, found {value!r}")


class TorchCall(PackedLayer):
    """One call of a torch operator, with its arguments.

    Args:
        operator: its name and overload, like "mean.dim", with a namespace in front where that is
            not torch's own; "getitem" takes one of several results.
        arguments: in order: plain values, lists of them, `{"input": i}` for the call's i-th input,
            `{"tensor": name}` for a buffer, `{"dtype": "float32"}`, `{"float": "inf"}`.
        keywords: further arguments by name.
        tensors: the buffers.

    Raises:
        ValueError: torch has no such operator, or the arguments hold something else.
    """

    attribute_names = ("operator", "arguments", "keywords")

    def __init__(
        self,
        operator: str,
        arguments: list[Any] | tuple[Any, ...],
        keywords: dict[str, Any] | None = None,
        **tensors: Tensor,
    ) -> None:
        super().__init__()
        if not isinstance(arguments, (list, tuple)) or not isinstance(keywords, (dict, type(None))):
            raise TypeError(
                "arguments and keywords must be a list and a dict, found "
                f"{type(arguments).__name__} and {type(keywords).__name__}"
            )
        self.operator = operator
        self.arguments = list(arguments)
        self.keywords = dict(keywords or {})
        self.function = _function(operator)
        self.inputs = _check_arguments([*self.arguments, *self.keywords.values()], tensors)
        for name in sorted(tensors):  # one order, in whichever they come from a file
            self.register_buffer(name, tensors[name])

    def extra_repr(self) -> str:
        return self.operator

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.function = _function(self.operator)

    def forward(self, *inputs: Any) -> Any:
        arguments = [fill(value, inputs, self._buffers) for value in self.arguments]
        keywords = {k: fill(value, inputs, self._buffers) for k, value in self.keywords.items()}
        return self.function(*arguments, **keywords)


def fill(template: Any, inputs: Sequence[Any], tensors: Mapping[str, Any]) -> Any:
    """An argument of a call, with inputs and tensors in the places that name them."""
    if isinstance(template, (list, tuple)):
        return [fill(item, inputs, tensors) for item in template]
    if not isinstance(template, dict):
        return template
    ((kind, which),) = template.items()
    if kind == "input":
        return inputs[which]
    return tensors[which] if kind == "tensor" else _CONSTANTS[kind, which]


def _check_arguments(arguments: Iterable[Any], tensors: Iterable[str]) -> int:
    """Sees that arguments are what they may be and use all tensors; gives the number of inputs."""
    inputs: set[int] = set()
    names: set[str] = set()
    for argument in arguments:
        for value in argument if isinstance(argument, (list, tuple)) else [argument]:
            if not isinstance(value, dict):
                _check_plain(value)
                continue
            if len(value) != 1:
                raise ValueError(f"references must have one key, found {value!r}")
            ((kind, which),) = value.items()
            if kind == "input" and type(which) is int:
                inputs.add(which)
            elif kind == "tensor" and isinstance(which, str):
                names.add(which)
            elif (kind, which) not in _CONSTANTS:
                raise ValueError(
                    "arguments must refer to an input, a tensor, a dtype or a float, "
                    f"found {value!r}"
                )
    if inputs != set(range(len(inputs))):
        raise ValueError(f"arguments must use inputs from 0 on, found {sorted(inputs)}")
    if names != set(tensors):
        raise ValueError(f"arguments must use all tensors, found {sorted(names)} of {[*tensors]}")
    return len(inputs)


def _check_plain(value: Any) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"integers must have 64 bits, found {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'floats must be finite or like {{"float": "inf"}}, found {value}')
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"arguments must be plain values or flat lists, found {value!r}")


def _function(name: str) -> Callable[..., Any]:
    if name == _ITEM:
        return operator.getitem
    namespace, _, rest = name.rpartition("::")
    packet, _, overload = rest.partition(".")
    try:
        operators = getattr(torch.ops, namespace or "aten")
        function: Callable[..., Any] = getattr(getattr(operators, packet), overload)
    except (AttributeError, RuntimeError):
        raise ValueError(f"operator must be one that torch has, found {name!r}") from None
    return function


class ToFormat(PackedLayer):
    """A map in the memory format asked for; no copy where it has it.

    Args:
        channels_last: whether that is torch.channels_last.
    """

    attribute_names = ("channels_last",)

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        if not isinstance(channels_last, bool):
            raise TypeError(f"channels_last must be a bool, found {type(channels_last).__name__}")
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        strides = torch.empty_like(input, memory_format=memory).stride()
        # Not contiguous(), which leaves the strides of dimensions of size 1; torch looks at them.
        return input if input.stride() == strides else input.clone(memory_format=memory)
