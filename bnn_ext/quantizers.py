"""Quantizers: the sign function with the gradients that train through it, and its scaled form.

The derivative of sign is 0 almost everywhere, so every quantizer here defines its own: the forward
is one function, the backward that of a smoother one. Layers take quantizers by name or as callables
(Tensor -> Tensor of the same shape and dtype):

| name                   | forward                  | gradient                              |
| ---------------------- | ------------------------ | ------------------------------------- |
| `ste_sign`             | sign(x)                  | 1 for abs(x) <= 1                     |
| `approx_sign`          | sign(x)                  | 2 - 2 abs(x) for abs(x) < 1           |
| `swish_sign`           | sign(x)                  | that of a swish-like sign, everywhere |
| `identity_sign`        | sign(x)                  | 1                                     |
| `stochastic_sign`      | +1 or -1, drawn          | 1 for abs(x) <= 1                     |
| `dropout_sign`         | sign(x), some dropped    | that of ste_sign, dropped alike       |
| `magnitude_aware_sign` | mean(abs(w)) * sign(w)   | mean(abs(w)) for abs(w) <= 1          |
| `xnor_sign`            | mean(abs(w)) * sign(w)   | that and the gradient of the mean     |

`TanhSign(sharpness)` makes quantizers that become the sign as their sharpness grows.

sign(x) is +1 for x >= 0 and -1 otherwise, so +0.0 and -0.0 give +1 and NaN gives -1. The gradients
of the first three are 0 where x is NaN.

A weight quantizer may have a method `split(weight) -> (signs, scale)` that gives its two factors
apart: `signs` of exactly ±1 in the shape and dtype of `weight`, `scale` of shape `[out]` in float32
or wider. Layers then compute with the signs, where every sum is exact, and scale the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from bnn_ext.ops import signs
from bnn_ext.ops.signs import sign

__all__ = [
    "ste_sign",
    "approx_sign",
    "swish_sign",
    "identity_sign",
    "stochastic_sign",
    "dropout_sign",
    "magnitude_aware_sign",
    "xnor_sign",
    "TanhSign",
    "register",
    "get",
    "name_of",
    "is_sign",
    "gives_signs",
    "deterministic",
    "split",
    "factor",
]

Quantizer = Callable[..., Tensor]
_Q = TypeVar("_Q", bound=Quantizer)

_REGISTRY: dict[str, Quantizer] = {}
_SIGNS: list[Quantizer] = []


# --- by name --------------------------------------------------------------------------------------


def register(name: str, *, is_sign: bool = False) -> Callable[[_Q], _Q]:
    """Decorator that makes a quantizer known to `get` by `name`.

    Args:
        name: what layers will accept as `input_quantizer` and `weight_quantizer`.
        is_sign: whether the forward is exactly `sign(x)`, whatever the gradient.

    Raises:
        ValueError: `name` is taken.
    """

    def add(quantizer: _Q) -> _Q:
        if name in _REGISTRY:
            raise ValueError(f"name must be new, found {name!r}, which is registered already")
        _REGISTRY[name] = quantizer
        if is_sign:
            _SIGNS.append(quantizer)
        return quantizer

    return add


def get(quantizer: str | Quantizer) -> Quantizer:
    """The quantizer registered as `quantizer`, or `quantizer` itself if it is a callable.

    Raises:
        ValueError: no quantizer has this name.
        TypeError: neither a string nor a callable.
    """
    if isinstance(quantizer, str):
        if quantizer not in _REGISTRY:
            raise ValueError(
                f"quantizer must be one of {', '.join(_REGISTRY)} or a callable, "
                f"found {quantizer!r}"
            )
        return _REGISTRY[quantizer]
    if callable(quantizer):
        return quantizer
    raise TypeError(
        f"quantizer must be a name or a callable, found {type(quantizer).__name__} {quantizer!r}"
    )


def name_of(quantizer: Quantizer) -> str | None:
    """The name under which the quantizer is registered, or None."""
    return next((name for name, known in _REGISTRY.items() if known is quantizer), None)


def _function(quantizer: Quantizer) -> Quantizer:
    """The function inside any `functools.partial`."""
    while isinstance(quantizer, functools.partial):
        quantizer = quantizer.func
    return quantizer


def deterministic(quantizer: Quantizer) -> Quantizer:
    """The quantizer as layers apply it in eval mode.

    `stochastic_sign` becomes `ste_sign`, the likelier of the two values; so do `dropout_sign`,
    which drops nothing any more, and a `TanhSign`, whose limit it is. All others stay.
    """
    function = _function(quantizer)
    if function in (stochastic_sign, dropout_sign) or isinstance(function, TanhSign):
        return ste_sign
    return quantizer


def is_sign(quantizer: Quantizer) -> bool:
    """Whether the forward in eval mode is exactly `sign(x)`, so that packed bits can replace it."""
    function = _function(deterministic(quantizer))
    return any(function is known for known in _SIGNS)


def gives_signs(quantizer: Quantizer) -> bool:
    """Whether the forward is exactly ±1 everywhere, in training mode as well: drawn or not."""
    function = _function(quantizer)
    return function is stochastic_sign or any(function is known for known in _SIGNS)


# --- sign and scale -------------------------------------------------------------------------------


def split(quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Quantizes `weight` `[out, ...]`, the scale apart if the quantizer can.

    Returns:
        `(signs, scale)` of a quantizer that has a method `split`, else `(quantizer(weight), None)`.
    """
    if hasattr(quantizer, "split"):
        return quantizer.split(weight)
    return quantizer(weight), None


def factor(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Writes a weight that takes two values ±s in each output channel as signs times scale.

    Args:
        weight: `[out, ...]`.

    Returns:
        Signs of ±1 in the shape of `weight`, and the scale `[out]`, or None where every s is 1.

    Raises:
        ValueError: some channel holds other values, or NaN.
    """
    magnitude = weight.flatten(1).abs()
    scale = magnitude.amax(1)
    differs = (magnitude != scale.unsqueeze(1)).any(1)
    if differs.any():
        channel = int(differs.nonzero()[0])
        raise ValueError(
            "weight must take two values ±s in each output channel, found magnitudes from "
            f"{magnitude[channel].min():.6g} to {scale[channel]:.6g} in channel {channel}"
        )
    return sign(weight), None if (scale == 1).all() else scale


# --- the sign family ------------------------------------------------------------------------------


class _SteSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return signs.straight_through(grad, x)


class _ApproxSign(_SteSign):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return signs.piecewise_quadratic(grad, x)


class _SwishSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, beta: float) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.beta = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        z = ctx.beta * x
        # 1 / (1 + cosh z) = 2 sigmoid(z) sigmoid(-z), which cannot overflow.
        bell = 2 * torch.sigmoid(z) * torch.sigmoid(-z)
        derivative = ctx.beta * (2 - z * torch.tanh(z / 2)) * bell
        return torch.where(z.isfinite(), grad * derivative, 0), None


class _IdentitySign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


class _IdentityTanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, sharpness: float) -> Tensor:
        return torch.tanh(sharpness * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _StochasticSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return signs.stochastic_sign(x, generator)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return signs.straight_through(grad, x), None


@register("ste_sign", is_sign=True)
def ste_sign(x: Tensor) -> Tensor:
    """Sign with the straight-through estimator.

    Forward: `sign(x)`. Gradient: `1` for `|x| <= 1`, else 0.

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830), equations 1 and 4.
    """
    return _SteSign.apply(x)


@register("approx_sign", is_sign=True)
def approx_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of a piecewise quadratic.

    Forward: `sign(x)`. Gradient: `2 + 2x` on [-1, 0), `2 - 2x` on [0, 1), else 0.

    Source: Liu, Wu, Luo, Yang, Liu, Cheng, "Bi-Real Net", 2018 (arXiv:1808.00278), the
    approximation of the derivative with respect to the activations.
    """
    return _ApproxSign.apply(x)


@register("swish_sign", is_sign=True)
def swish_sign(x: Tensor, beta: float = 5.0) -> Tensor:
    """Sign with the gradient of SignSwish.

    Forward: `sign(x)`. Gradient: `beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x))`, which
    is `beta` at 0, slightly negative further out, and tends to 0.

    Args:
        x: any shape.
        beta: sharpness; `functools.partial(swish_sign, beta=...)` gives a layer another one.

    Source: Darabi, Belbahri, Courbariaux, Partovi Nia, "BNN+: Improved Binary Network Training",
    2018 (arXiv:1812.11800), SignSwish and its derivative.
    """
    return _SwishSign.apply(x, beta)


@register("identity_sign", is_sign=True)
def identity_sign(x: Tensor) -> Tensor:
    """Sign whose gradient passes everywhere.

    Forward: `sign(x)`. Gradient: `1`. For latent weights; on [-1, 1], where `bnn.clip_weights`
    keeps them, it is `ste_sign`.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363), algorithm 1; the
    binary layers of kunglab/ebnn, whose latent weights nothing clips.
    """
    return _IdentitySign.apply(x)


@register("stochastic_sign")
def stochastic_sign(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws +1 with probability `clip((x + 1) / 2, 0, 1)`, else -1: on [-1, 1] the mean is x.

    Gradient: `1` for `|x| <= 1`, else 0. NaN gives -1. This function always draws; layers that
    hold it draw in training mode only and take `ste_sign`, the likelier value, in eval mode.

    Args:
        x: any shape.
        generator: source of randomness on the device of `x`, torch's global one if None;
            `functools.partial(stochastic_sign, generator=...)` gives a layer its own.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363), equations 2 and
    3, for weights; "Binarized Neural Networks", 2016 (arXiv:1602.02830), equations 2 to 4, for
    activations and the gradient.
    """
    return _StochasticSign.apply(x, generator)


@register("dropout_sign")
def dropout_sign(x: Tensor, p: float = 0.5) -> Tensor:
    """Dropout behind the sign: 0 with probability `p`, else `sign(x) / (1 - p)`.

    In front of a binary layer, `torch.nn.Dropout` drops nothing: the sign of the 0 that it puts is
    +1. Gradient: that of `ste_sign` times `1 / (1 - p)`, 0 where dropped. This function always
    drops; layers that hold it drop in training mode only and take `ste_sign` in eval mode.

    Args:
        x: any shape.
        p: in [0, 1]; `functools.partial(dropout_sign, p=...)` gives a layer another one.

    Source: the network for CIFAR-10 of jiecaoyu/XNOR-Net-PyTorch, whose dropout stands between the
    sign and the convolution.
    """
    return torch.nn.functional.dropout(ste_sign(x), p)


class _MagnitudeAwareSign:
    """Weight quantizer: sign times the mean magnitude of the output channel (dimension 0).

    Forward: `mean(|w|) * sign(w)`, the scale that brings ±s nearest to w in least squares.
    Gradient: `mean(|w|)` for `|w| <= 1`, else 0; the scale counts as a constant.

    Source: Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net", 2016 (arXiv:1603.05279), the optimal
    scale; Liu, Shen, Savvides, Cheng, "ReActNet", 2020 (arXiv:2003.03488), without a gradient
    through the scale.
    """

    def __call__(self, weight: Tensor) -> Tensor:
        signs, scale = self.split(weight)
        return (signs * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`(sign(w), mean(|w|))`: shapes of `weight` and `[out]`."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return ste_sign(weight), weight.detach().flatten(1).abs().mean(1, dtype=dtype)

    def __repr__(self) -> str:
        return "magnitude_aware_sign"

    def __reduce__(self) -> str:
        return repr(self)  # copies and pickles are this one object, as with functions


class _XnorSign(_MagnitudeAwareSign):
    """Weight quantizer: `magnitude_aware_sign` with a gradient through the scale as well.

    Forward: `mean(|w|) * sign(w)`. Gradient of one output channel of n weights, g being that of the
    loss with respect to the quantized weight: `g mean(|w|) [|w| <= 1] + sign(w) mean(g sign(w))`.

    Source: "XNOR-Net", 2016 (arXiv:1603.05279), section 3.1, the gradient of the estimated weight,
    with the sum over the channel that jiecaoyu/XNOR-Net-PyTorch has and the chain rule demands.
    """

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`(sign(w), mean(|w|))`: shapes of `weight` and `[out]`."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        signs = ste_sign(weight)
        # Not abs(): its gradient at 0 is 0, and the sign of 0 is +1 here.
        return signs, (weight * signs.detach()).flatten(1).mean(1, dtype=dtype)

    def __repr__(self) -> str:
        return "xnor_sign"


magnitude_aware_sign = register("magnitude_aware_sign")(_MagnitudeAwareSign())
xnor_sign = register("xnor_sign")(_XnorSign())


class TanhSign:
    """Weight quantizer `tanh(sharpness * w)`, which becomes the sign as the sharpness grows.

    Gradient: 1, that of mirror descent with dual variables w ("MD-tanh-S"); or, not straight
    through, the derivative `sharpness * (1 - tanh(sharpness * w)**2)` ("GD-tanh"). In eval mode
    layers take `ste_sign` instead.

        quantizer = quantizers.TanhSign()
        bnn.set_weight_quantizer(model, quantizer)         # one object for all layers
        for epoch in range(epochs):
            quantizer.sharpness = 1.01**epoch              # as BNEW's authors train this baseline
            ...an epoch with any optimizer...

    `optim.MirrorDescent` does the same inside an optimizer, growth included.

    Args:
        sharpness: positive; an attribute that may change at any time. It is no part of the model's
            state_dict.
        straight_through: whether the gradient is 1.

    Raises:
        ValueError: `sharpness` is not positive and finite.

    Source: Ajanthan, Gupta, Torr, Hartley, Dokania, "Mirror Descent View for Neural Network
    Quantization", 2021 (arXiv:1910.08237), the tanh projection and its stable form.
    """

    def __init__(self, sharpness: float = 1.0, *, straight_through: bool = True) -> None:
        self.sharpness = sharpness
        self.straight_through = straight_through

    @property
    def sharpness(self) -> float:
        return self._sharpness

    @sharpness.setter
    def sharpness(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"sharpness must be positive and finite, found {value}")
        self._sharpness = value

    def __call__(self, weight: Tensor) -> Tensor:
        if self.straight_through:
            return _IdentityTanh.apply(weight, self.sharpness)
        return torch.tanh(self.sharpness * weight)

    def __repr__(self) -> str:
        return f"TanhSign({self.sharpness:g}, straight_through={self.straight_through})"
