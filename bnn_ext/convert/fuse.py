"""Layers to nodes: which layers run on bits, and which disappear in a threshold.

The layers are read in order. A binary layer is held back until it is known what follows: modules
that are monotone in each channel, max-pools, dropout and a flatten gather in a chain behind it.

    ... and then another binary layer: the chain, with the sign that the next layer takes of its
        input, becomes one integer threshold per channel. Only bits pass from layer to layer.
    ... and then anything else: the layer gives floats and the chain's modules run as they were.

With a real input a binary layer is held back in the same way, if it may run by our kernels: its
chain becomes a float threshold. A chain behind another real layer becomes one in the packer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bnn_ext.convert.chain import Chain, chain_behind
from bnn_ext.convert.layers import (
    PackableLayer,
    binary_weight_layer,
    packed_layer,
    real_input_layer,
    takes_bits,
    takes_reals,
    why_not_packed,
)
from bnn_ext.convert.network import INPUT, Node
from bnn_ext.convert.report import LayerReport
from bnn_ext.convert.sequence import Layer, has_own_forward
from bnn_ext.convert.summary import BINARY_LAYERS, tensor_bytes, weights_per_output
from bnn_ext.convert.thresholds import IDENTITIES, NotMonotoneError, Threshold
from bnn_ext.nn.binary import BinaryConv2d
from bnn_ext.nn.packed import Pack, PackedFlatten, PackedLayer


def fuse(layers: Sequence[Layer], fuse_real: bool) -> tuple[list[Node], list[LayerReport]]:
    """Turns the layers of a sequence into the nodes of a packed network.

    Args:
        layers: in the order they run.
        fuse_real: whether real layers with binary weights may run by our kernels, and a chain
            behind a real layer may become a threshold too.

    Returns:
        The nodes in running order, and one report for each layer.
    """
    builder = _Builder(fuse_real)
    for layer in layers:
        builder.add(layer)
    builder.flush("it is the network's output")
    return builder.nodes, builder.reports


@dataclass
class _Source:
    """A binary layer whose output is not settled yet, on packed input unless that is real."""

    layer: Layer
    module: PackableLayer
    real: bool
    flattened: int | None = None  # channels of the map that was flattened in front of it

    def threshold(self, chain: Chain) -> Threshold:
        if self.real:
            return chain.threshold_of_real_sums(self.module)
        return chain.threshold_of_sums(self.module)

    def packed(self, threshold: Threshold | None) -> PackedLayer:
        channels_last = self.layer.output_channels_last
        if self.real:
            return real_input_layer(self.module, threshold, channels_last)
        return packed_layer(self.module, self.flattened, threshold, channels_last)


class _Builder:
    """Reads layers one by one; `source` and `chain` are what is held back."""

    def __init__(self, fuse_real: bool) -> None:
        self.fuse_real = fuse_real
        self.nodes: list[Node] = []
        self.reports: list[LayerReport] = []
        self.source: _Source | None = None
        self.chain: Chain | None = None

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
        if self.fuse_real and takes_reals(layer.module):
            self._hold(_Source(layer, layer.module, real=True))
            return
        self._leave(layer)
        self.chain = chain_behind(layer) if self.fuse_real else None

    def flush(self, why: str) -> None:
        """Settles what was held back: floats come out, the chain's modules run as they were.

        Args:
            why: what keeps the output from being bits, for the report.
        """
        if self.source is not None:
            packed = self.source.packed(threshold=None)
            reason = "real input, gives floats" if self.source.real else "gives floats"
            self._emit(self.source.layer, packed, "packed", f"{reason}: {why}")
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
        self._hold(_Source(layer, module, real=False, flattened=flattened))

    def _hold(self, source: _Source) -> None:
        """Holds a layer back until its output is settled."""
        weight = source.module.weight
        self.source = source
        self.chain = Chain(weight.shape[0], isinstance(source.module, BinaryConv2d), weight.device)

    def _settle(self, chain: Chain, following: Layer) -> str | None:
        """Ends the chain in a threshold: only bits reach the following layer.

        Returns:
            Why it cannot be one, in words; None if it is.
        """
        try:
            if self.source is not None:
                threshold = self.source.threshold(chain)
            else:
                threshold = chain.threshold_of_floats()
        except NotMonotoneError as error:
            return str(error)
        pack = None
        if self.source is not None:
            packed = self.source.packed(threshold)
            reason = "real input, gives bits" if self.source.real else "gives bits"
            self._emit(self.source.layer, packed, "fused", f"{reason} to {following.name}")
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

    def _leave(self, layer: Layer) -> None:
        """The layer runs as it was; of a binary layer at least the weight is kept as bits."""
        module = layer.module
        if isinstance(module, IDENTITIES) and not has_own_forward(module):
            self._report(layer, None, "left", "does nothing here")
            return
        if not isinstance(module, BINARY_LAYERS):
            self._emit(layer, copy.deepcopy(module), "left", _why_left(module))
            return
        if takes_reals(module):
            packed = binary_weight_layer(module)
            self._emit(layer, packed, "left", "real input; the weight is kept as bits")
            return
        reason = why_not_packed(module)
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


def _why_left(module: nn.Module) -> str:
    """What to tell the user of a layer that has nothing to do with bits, or might have."""
    inner = [type(m).__name__ for m in module.modules() if isinstance(m, BINARY_LAYERS)]
    if inner:
        return (
            f"holds {len(inner)} binary layers behind its own forward; only nested Sequentials "
            "are read"
        )
    return "real"
