"""What stands between a layer and the next sign: monotone modules, max-pools, a flatten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bnn_ext.convert.layers import PackableLayer, pair
from bnn_ext.convert.sequence import Layer, has_own_forward
from bnn_ext.convert.thresholds import (
    IDENTITIES,
    Evaluate,
    Threshold,
    direction,
    float_threshold,
    integer_threshold,
    minimum_channels,
)
from bnn_ext.nn.packed import PackedMaxPool2d


@dataclass
class Chain:
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
            if pair(module.dilation) != (1, 1) and pair(module.padding) != (0, 0):
                return f"{kind} is dilated and padded: a window may hold padding alone"
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

    def threshold_of_sums(self, layer: PackableLayer) -> Threshold:
        """The chain behind this layer's sums, its scale and bias included, as one comparison.

        Raises:
            NotMonotoneError: it is none.
        """
        evaluate = self._behind_sums(layer)
        return integer_threshold(evaluate, layer.weight[0].numel(), self.channels)

    def threshold_of_real_sums(self, layer: PackableLayer) -> Threshold:
        """The same for a layer with a real input, whose sums are float32.

        Raises:
            NotMonotoneError: it is none.
        """
        return float_threshold(self._behind_sums(layer), self.channels)

    def _behind_sums(self, layer: PackableLayer) -> Evaluate:
        _, scale = layer.signs_and_scale()

        def evaluate(sums: Tensor) -> Tensor:
            # The very code that the float layer runs after its sums.
            sums_as_floats = self.shaped(sums).to(layer.weight.dtype)
            return self.evaluate(layer.finish(sums_as_floats, scale).flatten())

        return evaluate

    def threshold_of_floats(self) -> Threshold:
        """The chain behind real values as one comparison.

        Raises:
            NotMonotoneError: it is none.
        """
        if all(isinstance(module, IDENTITIES) for module in self.elementwise(self.layers)):
            return Threshold(None, None)  # the sign
        return float_threshold(self.evaluate, self.channels)

    def packed_pool(self, index: int) -> PackedMaxPool2d:
        """The max-pool at `layers[index]`, on bits."""
        pool = self.layers[index].module
        assert isinstance(pool, nn.MaxPool2d)
        return PackedMaxPool2d(
            pair(pool.kernel_size),
            pair(pool.stride),
            pair(pool.padding),
            pair(pool.dilation),
            bool(pool.ceil_mode),
            minimum_channels(self.elementwise(self.layers[index + 1 :]), self.channels),
        )


def chain_behind(layer: Layer) -> Chain | None:
    """An empty chain behind a layer that runs on floats, if its channels are known."""
    module = layer.module
    if has_own_forward(module):
        return None
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.dtype == torch.float32:
        is_map = isinstance(module, nn.Conv2d)
        return Chain(module.weight.shape[0], is_map, module.weight.device)
    return None
