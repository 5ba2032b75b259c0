"""Layers to nodes: which layers run on bits, and which disappear in a threshold.

The layers are read in order. A binary layer is held back until it is known what follows: modules
that are monotone in each channel, max-pools, dropout and a flatten gather in a chain behind it.

    ... and then another binary layer: the chain, with the sign that the next layer takes of its
        input, becomes one integer threshold per channel. Only bits pass from layer to layer.
    ... and then anything else: the layer gives floats and the chain's modules run as they were.

A chain behind a real layer becomes a float threshold in the packer in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bnn_ext import ops, quantizers
from bnn_ext.convert.network import INPUT, Node
from bnn_ext.convert.report import LayerReport
from bnn_ext.convert.sequence import Layer, has_own_forward
from bnn_ext.convert.summary import BINARY_LAYERS, tensor_bytes, weights_per_output
from bnn_ext.convert.thresholds import (
    IDENTITIES,
    NotMonotoneError,
    Threshold,
    direction,
    float_threshold,
    integer_threshold,
    minimum_channels,
)
from bnn_ext.nn.binary import BinaryConv2d, BinaryLinear
from bnn_ext.nn.packed import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    Pack,
    PackedConv2d,
    PackedFlatten,
    PackedLayer,
    PackedLinear,
    PackedMaxPool2d,
    is_channels_last,
)

# The binary layers that have packed kernels.
PackableLayer = BinaryLinear | BinaryConv2d
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def fuse(layers: Sequence[Layer], real_thresholds: bool) -> tuple[list[Node], list[LayerReport]]:
    """Turns the layers of a sequence into the nodes of a packed network.

    Args:
        layers: in the order they run.
        real_thresholds: whether a chain behind a real layer may become a threshold too.

    Returns:
        The nodes in running order, and one report for each layer.
    """
    builder = _Builder(real_thresholds)
    for layer in layers:
        builder.add(layer)
    builder.flush("it is the network's output")
    return builder.nodes, builder.reports


# --- one layer ------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _conv_padding(layer: BinaryConv2d) -> tuple[int, int] | None:
    """The padding of both sides in numbers, or None where the sides differ."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # "same" resolved, too
    return (top, left) if (top, left) == (bottom, right) else None


def why_not_packed(layer: nn.Module) -> str | None:
    """Why the layer's weight cannot be kept as bits, in words; None if it can."""
    if not isinstance(layer, PackableLayer):
        return "only linear layers and 2-d convolutions have packed kernels"
    if has_own_forward(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if layer.weight.dtype not in _DTYPES:
        return f"weight is {layer.weight.dtype}; use float32, float16 or bfloat16"
    if isinstance(layer, BinaryConv2d) and _conv_padding(layer) is None:
        return 'padding="same" pads one side more than the other; choose an odd kernel size'
    try:
        layer.signs_and_scale()
    except ValueError as error:
        return str(error)
    return None


def takes_bits(layer: nn.Module) -> TypeGuard[PackableLayer]:
    """Whether the layer can run on packed input: a binary layer that takes the input's sign."""
    return (
        isinstance(layer, PackableLayer)
        and layer.input_quantizer is not None
        and quantizers.is_sign(layer.input_quantizer)
        and why_not_packed(layer) is None
    )


def _packed_weight(layer: PackableLayer, flattened: int | None) -> Tensor:
    """The weight's signs in the packed order of the input.

    Args:
        layer: the binary layer.
        flattened: channels of the map that was flattened in front of a linear layer. A packed map
            lies in the order height, width, channel; the weight expects channel first.
    """
    signs, _ = layer.signs_and_scale()
    if signs.dim() == 4:
        signs = signs.permute(0, 2, 3, 1)
    elif flattened is not None:
        signs = signs.unflatten(1, (flattened, -1)).transpose(1, 2).flatten(1)
    return ops.pack(signs.contiguous())


def _arguments(layer: PackableLayer) -> dict[str, object]:
    """The geometry that a packed convolution takes over."""
    if isinstance(layer, BinaryLinear):
        return {}
    return {
        "stride": _pair(layer.stride),
        "padding": _conv_padding(layer),
        "dilation": _pair(layer.dilation),
        "groups": int(layer.groups),
        "pad_value": int(layer.pad_value),
    }


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().clone()


def _packed_layer(
    layer: PackableLayer,
    flattened: int | None,
    threshold: Threshold | None,
    channels_last: bool,
) -> PackedLinear | PackedConv2d:
    """The layer on packed input, with bits as output if there is a threshold."""
    arguments = _arguments(layer)
    if threshold is None:
        _, scale = layer.signs_and_scale()
        arguments["scale"] = _float(scale)
        arguments["bias"] = _float(layer.bias)
        arguments["dtype"] = _DTYPES[layer.weight.dtype]
    else:
        arguments |= threshold._asdict()
    weight = _packed_weight(layer, flattened)
    if isinstance(layer, BinaryLinear):
        return PackedLinear(weight, int(layer.in_features), **arguments)  # type: ignore[arg-type]
    if threshold is None:
        arguments["channels_last"] = channels_last
    return PackedConv2d(weight, int(layer.in_channels), **arguments)  # type: ignore[arg-type]


def _binary_weight_layer(layer: PackableLayer) -> PackedLayer:
    """The layer with a real input, its weight stored as bits."""
    _, scale = layer.signs_and_scale()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    dtype = _DTYPES[layer.weight.dtype]
    weight, fan_in = _packed_weight(layer, None), layer.weight.shape[1]
    if isinstance(layer, BinaryLinear):
        return BinaryWeightLinear(weight, fan_in, scale, bias, dtype)
    return BinaryWeightConv2d(
        weight,
        fan_in,
        **_arguments(layer),  # type: ignore[arg-type]
        channels_last=is_channels_last(layer.weight),
        scale=scale,
        bias=bias,
        dtype=dtype,
    )


# --- the chain behind a layer ---------------------------------------------------------------------


@dataclass
class _Chain:
    """Monotone modules, pools and perhaps a flatten, behind a layer of `channels` channels."""

    channels: int
    is_map: bool
    device: torch.device
    layers: list[Layer] = field(default_factory=list)
    flattened: bool = False

    def why_not(self, layer: Layer) -> str | None:
        """Why the layer cannot join the chain, in words; None if it can."""
        module = layer.module
        kind = type(module).__name__
        if has_own_forward(module):
            return f"{kind} has a forward of its own"
        is_matrix = not self.is_map and len(layer.input_shape or (0, 0)) == 2
        if isinstance(module, nn.Flatten):
            if (module.start_dim, module.end_dim) != (1, -1) or not (self.is_map or is_matrix):
                return "only Flatten(1, -1) of a map keeps bits packed"
            return None
        if isinstance(module, nn.MaxPool2d):
            if not self.is_map or self.flattened:
                return f"{kind} pools something else than a map"
            return f"{kind} returns indices as well" if module.return_indices else None
        reason = direction(module, self.channels)
        if isinstance(reason, str):
            return reason
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return None
        if isinstance(module, (nn.PReLU, nn.modules.batchnorm._BatchNorm)):
            if self.is_map and self.flattened:
                return f"{kind} has parameters for each position of the flattened map"
            if not self.is_map and not is_matrix:
                return f"{kind} does not act on the last dimension"
        return None

    @staticmethod
    def elementwise(layers: Sequence[Layer]) -> list[nn.Module]:
        return [
            layer.module
            for layer in layers
            if not isinstance(layer.module, (nn.Flatten, nn.MaxPool2d))
        ]

    def shaped(self, values: Tensor) -> Tensor:
        """One value per channel, `[channels]`, as a map or a row on the chain's device."""
        values = values.to(self.device)
        return values.view(1, -1, 1, 1) if self.is_map else values.view(1, -1)

    def evaluate(self, values: Tensor) -> Tensor:
        """Applies the elementwise modules to one value per channel, `[channels]`."""
        x = self.shaped(values)
        for module in self.elementwise(self.layers):
            x = module(x)
        return x.flatten()

    def packed_pool(self, index: int) -> PackedMaxPool2d:
        """The max-pool at `layers[index]`, on bits."""
        pool = self.layers[index].module
        assert isinstance(pool, nn.MaxPool2d)
        return PackedMaxPool2d(
            _pair(pool.kernel_size),
            _pair(pool.stride),
            _pair(pool.padding),
            _pair(pool.dilation),
            bool(pool.ceil_mode),
            minimum_channels(self.elementwise(self.layers[index + 1 :]), self.channels),
        )


def _chain_behind(layer: Layer) -> _Chain | None:
    """An empty chain behind a layer that runs on floats, if its channels are known."""
    module = layer.module
    if has_own_forward(module):
        return None
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.dtype == torch.float32:
        is_map = isinstance(module, nn.Conv2d)
        return _Chain(module.weight.shape[0], is_map, module.weight.device)
    return None


# --- the whole sequence ---------------------------------------------------------------------------


@dataclass
class _Source:
    """A binary layer on packed input, whose output is not settled yet."""

    layer: Layer
    module: PackableLayer
    flattened: int | None  # channels of the map that was flattened in front of it

    def packed(self, threshold: Threshold | None) -> PackedLinear | PackedConv2d:
        channels_last = self.layer.output_channels_last
        return _packed_layer(self.module, self.flattened, threshold, channels_last)


class _Builder:
    """Reads layers one by one; `source` and `chain` are what is held back."""

    def __init__(self, real_thresholds: bool) -> None:
        self.real_thresholds = real_thresholds
        self.nodes: list[Node] = []
        self.reports: list[LayerReport] = []
        self.source: _Source | None = None
        self.chain: _Chain | None = None

    def add(self, layer: Layer) -> None:
        if takes_bits(layer.module):
            self._add_binary(layer, layer.module)
            return
        reason = "its input is real"
        if self.chain is not None and not isinstance(layer.module, BINARY_LAYERS):
            obstacle = self.chain.why_not(layer)
            if obstacle is None:
                self.chain.layers.append(layer)
                self.chain.flattened |= isinstance(layer.module, nn.Flatten)
                return
            reason = obstacle
        self.flush(f"{layer.name or 'model'} follows: {reason}")
        self._leave(layer)
        self.chain = _chain_behind(layer) if self.real_thresholds else None

    def flush(self, why: str) -> None:
        """Settles what was held back: floats come out, the chain's modules run as they were.

        Args:
            why: what keeps the output from being bits, for the report.
        """
        if self.source is not None:
            packed = self.source.packed(threshold=None)
            self._emit(self.source.layer, packed, "packed", f"gives floats: {why}")
            self.source = None
        if self.chain is not None:
            for layer in self.chain.layers:
                self._leave(layer)
            self.chain = None

    def _add_binary(self, layer: Layer, module: PackableLayer) -> None:
        wants_map = isinstance(module, BinaryConv2d)
        chain, flattened = self.chain, None
        obstacle: str | None = "on other dimensions"
        if chain is not None and (chain.is_map and not chain.flattened) == wants_map:
            obstacle = self._settle(chain, layer)
            if chain.is_map and chain.flattened and obstacle is None:
                flattened = chain.channels
        if obstacle is not None:
            self.flush(f"{layer.name or 'model'} follows, {obstacle}")
            self._append(_packer_name(layer), Pack(wants_map))
        self.source = _Source(layer, module, flattened)
        self.chain = _Chain(module.weight.shape[0], wants_map, module.weight.device)

    def _settle(self, chain: _Chain, following: Layer) -> str | None:
        """Ends the chain in a threshold: only bits reach the following layer.

        Returns:
            Why it cannot be one, in words; None if it is.
        """
        try:
            threshold = self._threshold(chain)
        except NotMonotoneError as error:
            return str(error)
        pack = None
        if self.source is not None:
            packed = self.source.packed(threshold)
            self._emit(self.source.layer, packed, "fused", f"gives bits to {following.name}")
            into = f"in the threshold of {self.source.layer.name}"
        else:
            pack = Pack(chain.is_map, *threshold)
            self._append(_packer_name(following), pack)
            into = f"in the packing for {following.name}"

        rows = not chain.is_map
        for index, layer in enumerate(chain.layers):
            if isinstance(layer.module, nn.MaxPool2d):
                self._emit(layer, chain.packed_pool(index), "fused", "pools bits")
            elif isinstance(layer.module, nn.Flatten) and not rows:
                self._emit(layer, PackedFlatten(chain.channels), "fused", "joins packed rows")
                rows = True
            elif isinstance(layer.module, (nn.Flatten, *IDENTITIES)):
                self._report(layer, None, "fused", "does nothing here")
            else:
                self._report(layer, pack, "fused", into)
                pack = None  # its bytes count once
        self.source = self.chain = None
        return None

    def _threshold(self, chain: _Chain) -> Threshold:
        """The chain as one comparison per channel.

        Raises:
            NotMonotoneError: it is none.
        """
        if self.source is not None:
            return _sum_threshold(self.source.module, chain)
        if all(isinstance(module, IDENTITIES) for module in chain.elementwise(chain.layers)):
            return Threshold(None, None)  # the sign
        return float_threshold(chain.evaluate, chain.channels)

    def _leave(self, layer: Layer) -> None:
        """The layer runs as it was; of a binary layer at least the weight is kept as bits."""
        module = layer.module
        if isinstance(module, IDENTITIES) and not has_own_forward(module):
            self._report(layer, None, "left", "does nothing here")
            return
        if not isinstance(module, BINARY_LAYERS):
            self._emit(layer, copy.deepcopy(module), "left", _why_left(module))
            return
        reason = why_not_packed(module)
        if isinstance(module, PackableLayer) and module.input_quantizer is None and not reason:
            packed = _binary_weight_layer(module)
            self._emit(layer, packed, "left", "real input; the weight is kept as bits")
            return
        reason = reason or f"input_quantizer {module.input_quantizer!r} is not a plain sign"
        self._emit(layer, copy.deepcopy(module), "left", reason)

    def _emit(self, layer: Layer, module: nn.Module, status: str, reason: str) -> None:
        self._append(layer.name or "model", module)
        self._report(layer, module, status, reason)

    def _append(self, name: str, module: nn.Module) -> None:
        source = self.nodes[-1].name if self.nodes else INPUT
        self.nodes.append(Node(name, module, (source,)))

    def _report(self, layer: Layer, module: nn.Module | None, status: str, reason: str) -> None:
        self.reports.append(
            LayerReport(
                layer.name,
                type(layer.module).__name__,
                status,
                reason,
                bytes_before=tensor_bytes(layer.module),
                bytes_after=0 if module is None else tensor_bytes(module),
                macs=_macs(layer),
            )
        )


def _macs(layer: Layer) -> int | None:
    """Multiply-accumulates of one sample, None if the shapes or the layer's work are unknown."""
    if list(layer.module.children()) or layer.output_shape is None:
        return None
    outputs = 1
    for size in layer.output_shape[1:]:
        outputs *= size
    return outputs * weights_per_output(layer.module)


def _packer_name(layer: Layer) -> str:
    return f"{layer.name}.pack" if layer.name else "pack"


def _sum_threshold(module: PackableLayer, chain: _Chain) -> Threshold:
    """The chain behind a binary layer's sums, scale and bias included, as one comparison."""
    _, scale = module.signs_and_scale()

    def evaluate(sums: Tensor) -> Tensor:
        # The very code that the float layer runs after its sums.
        sums_as_floats = chain.shaped(sums).to(module.weight.dtype)
        return chain.evaluate(module.finish(sums_as_floats, scale).flatten())

    return integer_threshold(evaluate, module.weight[0].numel(), chain.channels)


def _why_left(module: nn.Module) -> str:
    """What to tell the user of a layer that has nothing to do with bits, or might have."""
    inner = [type(m).__name__ for m in module.modules() if isinstance(m, BINARY_LAYERS)]
    if inner:
        return (
            f"holds {len(inner)} binary layers behind its own forward; only nested Sequentials "
            "are read"
        )
    return "real"
