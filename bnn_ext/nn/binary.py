"""Trainable binary layers: torch.nn's linear and convolution with quantized input and weight.

The parameter `weight` is the latent real weight that optimizers update; the forward quantizes it
anew each time. Quantizers come by name or as callables, see `bnn_ext.quantizers`; None leaves the
input or the weight real.

    input -> input quantizer -> linear or convolution with the signs -> scale -> bias
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnn_ext import quantizers
from bnn_ext.nn import on_bits
from bnn_ext.quantizers import Quantizer


class _BinaryLayer(nn.Module):
    """What all binary layers share; a concrete layer inherits from its torch.nn layer as well."""

    weight: Tensor
    bias: Any  # Tensor or None; torch.nn's own layers disagree about its type
    # Also of layers saved before there was a choice.
    training_forward: str | None = None
    training_backward: str | None = None

    def __init__(
        self,
        *args: Any,
        input_quantizer: str | Quantizer | None,
        weight_quantizer: str | Quantizer | None,
        forward: str | None,
        backward: str | None,
        **kwargs: Any,
    ) -> None:
        for name, choice in (("forward", forward), ("backward", backward)):
            if choice not in on_bits.CHOICES:
                raise ValueError(f"{name} must be 'packed', 'float' or None, found {choice!r}")
        if (forward, backward) == ("float", "packed"):
            raise ValueError("backward='packed' needs a packed forward, found forward='float'")
        super().__init__(*args, **kwargs)
        self.input_quantizer = _get("input_quantizer", input_quantizer)
        self.weight_quantizer = _get("weight_quantizer", weight_quantizer)
        self.training_forward = forward
        self.training_backward = backward

    @property
    def binary_weight(self) -> Tensor:
        """The weight that the forward computes with: ±1, times the scale if there is one.

        With `weight_quantizer=None` the real weight; with `stochastic_sign` in training mode a new
        draw each time.
        """
        quantizer = self._in_this_mode(self.weight_quantizer)
        return self.weight if quantizer is None else quantizer(self.weight)

    @torch.no_grad()
    def signs_and_scale(self) -> tuple[Tensor, Tensor | None]:
        """The weight of eval mode as signs times scale.

        Returns:
            Signs of ±1 in the shape of `weight`, and the scale `[out]`, None where it is 1.

        Raises:
            ValueError: the weight is real, or takes other values than ±s in some output channel.
        """
        if self.weight_quantizer is None:
            raise ValueError("weight_quantizer must quantize the weight to ±s, found None")
        quantizer = quantizers.deterministic(self.weight_quantizer)
        weight, scale = quantizers.split(quantizer, self.weight)
        return quantizers.factor(weight) if scale is None else (weight, scale)

    def _in_this_mode(self, quantizer: Quantizer | None) -> Quantizer | None:
        if quantizer is None or self.training:
            return quantizer
        return quantizers.deterministic(quantizer)

    def _quantized_input(self, input: Tensor) -> Tensor:
        quantizer = self._in_this_mode(self.input_quantizer)
        return input if quantizer is None else quantizer(input)

    def _quantized_weight(self) -> tuple[Tensor, Tensor | None]:
        """`binary_weight`, its scale apart if the quantizer can."""
        quantizer = self._in_this_mode(self.weight_quantizer)
        return (
            (self.weight, None) if quantizer is None else quantizers.split(quantizer, self.weight)
        )

    def _on_bits(self, input: Tensor, weight: Tensor, *geometry: Sequence[int]) -> bool:
        """Whether the packed kernels multiply the quantized input and weight.

        In eval mode only within `packed_evaluation`: elsewhere the sums are torch's, for
        conversions to compare with.

        Args:
            input, weight: quantized.
            geometry: stride, padding and dilation of a convolution.
        """
        if not on_bits.wanted(self.training) or self.training_forward == "float":
            return False
        of_input, of_weight = self.input_quantizer, self.weight_quantizer
        signs = (
            of_input is not None
            and quantizers.gives_signs(of_input)
            and of_weight is not None
            and (quantizers.gives_signs(of_weight) or hasattr(of_weight, "split"))
        )
        if not signs and self.training and self.training_forward == "packed":
            raise ValueError(
                f"forward='packed' needs quantizers that give ±1, found {of_input} for the "
                f"input and {of_weight} for the weight"
            )
        if not signs or not on_bits.possible(input, weight):
            return False
        return self.training_forward == "packed" or on_bits.pays(input, weight, *geometry)

    def _backward_on_bits(self, input: Tensor, weight: Tensor, *geometry: Sequence[int]) -> bool:
        """Whether the gradients of a product on packed bits come from packed bits as well."""
        if self.training_backward is None:
            return on_bits.backward_pays(input, weight, *geometry)
        return self.training_backward == "packed"

    def finish(self, sums: Tensor, scale: Tensor | None) -> Tensor:
        """`sums * scale + bias` per output channel, in the dtype of `sums`."""
        return scale_and_bias(sums, scale, self.bias, self.weight.dim() - 2)

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        for name in ("input_quantizer", "weight_quantizer"):
            quantizer = getattr(self, name)
            if quantizer is not quantizers.ste_sign:
                parts.append(f"{name}={getattr(quantizer, '__name__', repr(quantizer))}")
        for name in ("forward", "backward"):
            choice = getattr(self, f"training_{name}")
            if choice is not None:
                parts.append(f"{name}={choice!r}")
        return ", ".join(parts)


def scale_and_bias(
    sums: Tensor, scale: Tensor | None, bias: Tensor | None, spatial_dims: int
) -> Tensor:
    """`sums * scale + bias` per output channel, in the dtype of `sums`.

    The exactness contract: sums of ±1 are integers and exact, so the scale and the bias come after
    them, in this order, as in the packed kernels. Fused into the convolution, either would round
    differently. The scale is float32 or wider also in half precision, so that the result of
    scaling is rounded only once.

    Args:
        sums: `[N, out, ...]`, or `[..., out]` with no spatial dimension.
        scale, bias: `[out]` or None.
        spatial_dims: number of dimensions after the channels.
    """
    shape = (-1,) + (1,) * spatial_dims
    out = sums
    if scale is not None:
        out = out * scale.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(sums.dtype)


def _get(name: str, quantizer: str | Quantizer | None) -> Quantizer | None:
    try:
        return None if quantizer is None else quantizers.get(quantizer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


class BinaryLinear(_BinaryLayer, nn.Linear):
    """`torch.nn.Linear` with quantized input and weight.

    Shape: input `[..., in_features]`, output `[..., out_features]`, weight `[out_features,
    in_features]`.

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`; the bias is real.
        input_quantizer: name, callable, or None to leave the input real.
        weight_quantizer: name, callable, or None to leave the weight real.
        forward: what computes the sums in training mode: "packed" for the packed kernels, wherever
            they can run, "float" for torch's, None for whichever is known to be faster. The values
            are the same; eval mode computes in floats, but within `packed_evaluation`.
        backward: what computes the gradients behind a packed forward, likewise: "packed" gives
            torch's but for the rounding of their sums, "float" gives torch's.

    Raises:
        ValueError: a quantizer's name, `forward` or `backward` is unknown, or `backward` is packed
            and `forward` is not; in the forward, "packed" finds values that are not ±1.
        TypeError: a quantizer is neither a name nor a callable.

    Source: "Binarized Neural Networks", 2016 (arXiv:1602.02830), algorithm 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        input_quantizer: str | Quantizer | None = "ste_sign",
        weight_quantizer: str | Quantizer | None = "ste_sign",
        forward: str | None = None,
        backward: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            input_quantizer=input_quantizer,
            weight_quantizer=weight_quantizer,
            forward=forward,
            backward=backward,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        x = self._quantized_input(input)
        weight, scale = self._quantized_weight()
        if self._on_bits(x, weight):
            sums = on_bits.linear(x, weight, self._backward_on_bits(x, weight))
        else:
            sums = F.linear(x, weight)
        return self.finish(sums, scale)


class _BinaryConv(_BinaryLayer):
    """A binary convolution in any number of spatial dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    _reversed_padding_repeated_twice: list[int]
    _convolve: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        pad_value: int = 0,
        input_quantizer: str | Quantizer | None = "ste_sign",
        weight_quantizer: str | Quantizer | None = "ste_sign",
        forward: str | None = None,
        backward: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes a layer with a random latent weight.

        Args:
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device,
                dtype: as for the torch.nn layer; the bias is real.
            pad_value: what padded positions hold: 0 adds nothing to the sums (as in torch), +1 or
                -1 count like inputs.
            input_quantizer: name, callable, or None to leave the input real.
            weight_quantizer: name, callable, or None to leave the weight real.
            forward: what computes the sums of 2-d convolutions in training mode: "packed" for the
                packed kernels, wherever they can run, "float" for torch's, None for whichever is
                known to be faster. The values are the same; eval mode computes in floats, but
                within `packed_evaluation`.
            backward: what computes the gradients behind a packed forward, likewise: "packed" gives
                torch's but for the rounding of their sums, "float" gives torch's.

        Raises:
            ValueError: `pad_value` is not -1, 0 or 1, a quantizer's name, `forward` or `backward`
                is unknown, or `backward` is packed and `forward` is not; in the forward, "packed"
                finds values that are not ±1.
            TypeError: a quantizer is neither a name nor a callable.
        """
        if pad_value not in (-1, 0, 1):
            raise ValueError(f"pad_value must be -1, 0 or 1, found {pad_value!r}")
        for name, choice in (("forward", forward), ("backward", backward)):
            if choice == "packed" and not isinstance(self, nn.Conv2d):
                raise ValueError(
                    f"{name} of {type(self).__name__} must be 'float' or None, found 'packed'"
                )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            input_quantizer=input_quantizer,
            weight_quantizer=weight_quantizer,
            forward=forward,
            backward=backward,
            device=device,
            dtype=dtype,
        )
        self.pad_value = pad_value

    def forward(self, input: Tensor) -> Tensor:
        x = self._quantized_input(input)
        padding: tuple[int, ...] | str | int = self.padding
        if self.pad_value != 0:
            x = F.pad(x, self._reversed_padding_repeated_twice, value=self.pad_value)
            padding = 0
        weight, scale = self._quantized_weight()
        return self.finish(self._sums(x, weight, padding), scale)

    def _sums(self, input: Tensor, weight: Tensor, padding: tuple[int, ...] | str | int) -> Tensor:
        """The convolution of the quantized input and weight."""
        return self._convolve(input, weight, None, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        pad_value = f", pad_value={self.pad_value}" if self.pad_value != 0 else ""
        return super().extra_repr() + pad_value


class BinaryConv1d(_BinaryConv, nn.Conv1d):
    """`torch.nn.Conv1d` with quantized input and weight.

    Shape: input `[N, in_channels, L]` or without N, output `[N, out_channels, L']`,
    weight `[out_channels, in_channels / groups, k]`.
    """

    _convolve = staticmethod(F.conv1d)


class BinaryConv2d(_BinaryConv, nn.Conv2d):
    """`torch.nn.Conv2d` with quantized input and weight.

    Shape: input `[N, in_channels, H, W]` or without N, output `[N, out_channels, H', W']`,
    weight `[out_channels, in_channels / groups, kh, kw]`.
    """

    _convolve = staticmethod(F.conv2d)

    def _sums(self, input: Tensor, weight: Tensor, padding: tuple[int, ...] | str | int) -> Tensor:
        if input.dim() == 4 and not isinstance(padding, str):
            padding = (padding,) * 2 if isinstance(padding, int) else padding
            geometry = (self.stride, padding, self.dilation)
            if self._on_bits(input, weight, *geometry):
                backward_on_bits = self._backward_on_bits(input, weight, *geometry)
                return on_bits.conv2d(input, weight, *geometry, self.groups, backward_on_bits)
        return super()._sums(input, weight, padding)


class BinaryConv3d(_BinaryConv, nn.Conv3d):
    """`torch.nn.Conv3d` with quantized input and weight.

    Shape: input `[N, in_channels, D, H, W]` or without N, output `[N, out_channels, D', H', W']`,
    weight `[out_channels, in_channels / groups, kd, kh, kw]`.
    """

    _convolve = staticmethod(F.conv3d)


def make_binary(
    layer: Any,
    input_quantizer: str | Quantizer | None,
    weight_quantizer: str | Quantizer | None,
) -> None:
    """Turns a linear layer or convolution of torch.nn into the binary one, in place.

    It stays the same object with the same parameters and hooks: whoever holds it, holds a binary
    layer now, and tied weights stay tied.

    Raises:
        ValueError: the layer pads with anything but zeros, or a quantizer's name is unknown.
        TypeError: a quantizer is neither a name nor a callable.
    """
    padding_mode = getattr(layer, "padding_mode", "zeros")
    if padding_mode != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', found {padding_mode!r}")
    layer.input_quantizer = _get("input_quantizer", input_quantizer)
    layer.weight_quantizer = _get("weight_quantizer", weight_quantizer)
    layer.training_forward = layer.training_backward = None
    layer.__class__ = BINARY_OF[type(layer)]
    if isinstance(layer, _BinaryConv):
        layer.pad_value = 0


# Exact types: a class derived from them may compute something else.
BINARY_OF: dict[type[nn.Module], type[_BinaryLayer]] = {
    nn.Linear: BinaryLinear,
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
    nn.Conv3d: BinaryConv3d,
}


def binary_layers(model: nn.Module) -> list[_BinaryLayer]:
    """The binary layers of a model, in order.

    Raises:
        ValueError: there is none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BinaryLayer)]
    if not layers:
        raise ValueError(f"model must hold a binary layer, found none in {type(model).__name__}")
    return layers


def binary_parameters(model: nn.Module) -> list[Tensor]:
    """The weights of the binary layers, each once, in order.

    Also those of layers whose weight is real for now (`weight_quantizer=None`), as in the first of
    two training steps: what is no binary layer is not meant to become one.

    Args:
        model: holds at least one binary layer; it may be compiled, or wrapped for DDP.

    Raises:
        ValueError: it holds none.
    """
    weights = {layer.weight: None for layer in binary_layers(model)}  # tied ones once, in order
    return list(weights)


def set_weight_quantizer(model: nn.Module, weight_quantizer: str | Quantizer | None) -> None:
    """Gives all binary layers of a model another weight quantizer, in place.

    Networks that train in two steps, as Bi-Real Net's and ReActNet's, have real weights in the
    first, `None`, and a scaled sign in the second. What trains with real weights in [-1, 1], as
    BNEW and mirror descent do, ends with `"ste_sign"`.

    Args:
        model: holds at least one binary layer.
        weight_quantizer: name, callable, or None for real weights.

    Raises:
        ValueError: `model` holds no binary layer, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: Liu, Shen, Savvides, Cheng, "ReActNet", 2020 (arXiv:2003.03488), the two steps of
    its training.
    """
    quantizer = _get("weight_quantizer", weight_quantizer)
    for layer in binary_layers(model):
        layer.weight_quantizer = quantizer


def clip_weights(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | Iterable[Tensor],
    limit: float = 1.0,
) -> RemovableHandle:
    """Keeps the latent weights of the binary layers in [-limit, limit] after every step.

    A latent weight far outside of the range where its quantizer has a gradient could never change
    its sign again. Biases, BatchNorm and layers with real weights are left alone.

        handle = clip_weights(optimizer, model)   # from now on, at each optimizer.step()
        handle.remove()                           # no longer

    Args:
        optimizer: the one that updates `model`.
        model: holds at least one layer with a binary weight; or the tensors to clip, whatever they
            are: `binary_parameters(model)` holds real weights, too, in [-1, 1], as in phase 1 of
            BNEW.
        limit: positive.

    Returns:
        The handle of the optimizer's hook.

    Raises:
        ValueError: `limit` is not positive, or there is nothing to clip.

    Source: "Binarized Neural Networks", 2016 (arXiv:1602.02830), algorithm 1, the clip after the
    update.
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, found {limit}")
    if isinstance(model, nn.Module):
        layers = [layer for layer in model.modules() if isinstance(layer, _BinaryLayer)]
        weights = [layer.weight for layer in layers if layer.weight_quantizer is not None]
        if not weights:
            raise ValueError(
                f"model must hold a binary layer, found none with a weight quantizer in "
                f"{type(model).__name__}"
            )
    else:
        weights = list(model)
        if not weights:
            raise ValueError("model must be a module or the tensors to clip, found no tensor")

    @torch.no_grad()
    def clip(*_: Any) -> None:
        for weight in weights:
            weight.clamp_(-limit, limit)

    return optimizer.register_step_post_hook(clip)
