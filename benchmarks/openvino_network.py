"""Whole networks as OpenVINO graphs with BinaryConvolutions, written from their modules.

Real layers (a stem, 1x1 convolutions in shortcuts, a classifier) stay float operations. What is
affine per channel behind a layer (scale, bias, BatchNorm, LearnableBias) waits until it is known
who reads it. In front of a sign it becomes the FakeQuantize's threshold of each channel; elsewhere
a Multiply and an Add, which OpenVINO fuses into the convolution before them, as it does the sum
with a shortcut, a PReLU and a Clamp.

BinaryConvolution pads with its pad_value, here 0 that adds nothing to a sum: as torch pads, borders
are the same. Layers with a pad_value of ±1, dilation, groups, or channels that are no multiple of 8
have no graph here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from measured_networks import layers_of, takes_signs
from openvino_binary import binary_conv, counted_microseconds, signs
from parts import Part, shares
from peers import ROUNDING, Missing, OpenvinoRequest, Work, check
from timing import Implementation
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext.models.reactnet import Twice

PLACES = ("stem", "body", "shortcut", "head")
PLAIN = (1, (1, 1), 0)  # groups, dilation and pad_value
ELEMENTWISE = ("Multiply", "Add", "Clamp", "PRelu")  # what may stand between a sum and a sign


class Value(NamedTuple):
    """`node * scale + shift` per channel, of which the graph holds `node` only; NCHW."""

    node: Any
    scale: Tensor = torch.ones(1)
    shift: Tensor = torch.zeros(1)

    def then(self, scale: Tensor, shift: Tensor) -> Value:
        """`self * scale + shift`."""
        return Value(self.node, self.scale * scale, self.shift * scale + shift)


class Network:
    """Writes a graph module by module.

    Nodes are named by their place: the stem before the first sign, shortcuts, the head behind the
    last map, and the body between.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        """Writes the graph of `model` for inputs of this shape.

        Raises:
            Missing: a module, or a setting of one, has no binary graph.
        """
        import openvino
        from openvino import opset1

        self.opset = opset1
        self.place = PLACES[0]
        self.nodes = 0
        self.sums: set[str] = set()
        self.signs: dict[tuple[str, str], Any] = {}
        parameter = opset1.parameter(list(shape), np.float32)
        output = self._real(self._run(model, Value(parameter)))
        self._part_sums_from_signs()
        self.model = openvino.Model([output], [parameter])

    def _named(self, node: Any) -> Any:
        self.nodes += 1
        node.set_friendly_name(f"{self.place} {self.nodes}")
        return node

    # --- reading a value ---

    def _real(self, value: Value) -> Any:
        node = value.node
        if not torch.equal(value.scale, torch.ones(1)):
            node = self._named(self.opset.multiply(node, _per_channel(value.scale)))
        if not torch.equal(value.shift, torch.zeros(1)):
            node = self._named(self.opset.add(node, _per_channel(value.shift)))
        return node

    def _bits(self, value: Value) -> Any:
        if self.place == "stem":
            self.place = "body"
        threshold, rising = torch.broadcast_tensors(-value.shift / value.scale, value.scale > 0)
        key = value.node.get_friendly_name(), str((threshold.tolist(), rising.tolist()))
        if key not in self.signs:  # branch and shortcut may both begin with it
            self.signs[key] = self._named(signs(value.node, threshold, rising))
        return self.signs[key]

    def _part_sums_from_signs(self) -> None:
        """A pooling of 1x1 between a sum and a sign where nothing else reads the sum.

        OpenVINO would fuse both into the binary convolution before them, and does it wrongly: most
        bits are then those of other numbers.
        """
        for bits in self.signs.values():
            value = bits.input_value(0)
            node = value.get_node()
            while _has_one_reader(node) and node.get_type_name() in ELEMENTWISE:
                if node.get_friendly_name() in self.sums:
                    apart = self._named(self.opset.max_pool(value, [1, 1], [0, 0], [0, 0], [1, 1]))
                    bits.input(0).replace_source_output(apart.output(0))
                    break
                node = node.input_value(0).get_node()

    # --- modules ---

    def _run(self, model: nn.Module, value: Value) -> Value:
        for layer in layers_of(model):
            value = self._layer(layer, value)
        return value

    def _layer(self, layer: nn.Module, value: Value) -> Value:
        if isinstance(layer, bnn.Residual):
            return self._residual(layer, value)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            return self._products(layer, value)
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
            return value.then(scale, layer.bias - layer.running_mean * scale)
        if isinstance(layer, bnn.LearnableBias):
            return value.then(torch.ones(1), layer.bias)
        if isinstance(layer, nn.Flatten):  # linear layers here read whole maps
            self.place = "head"
            return value
        return Value(self._named(self._elementwise_or_pool(layer, self._real(value))))

    def _residual(self, layer: bnn.Residual, value: Value) -> Value:
        x = Value(self._real(value))
        branch = self._real(self._run(layer.branch, x))
        place, self.place = self.place, "shortcut"
        shortcut = self._real(self._run(layer.shortcut, x))
        self.place = place
        total = self._named(self.opset.add(branch, shortcut))
        self.sums.add(total.get_friendly_name())
        return self._run(layer.activation, Value(total))

    def _products(self, layer: nn.Conv2d | nn.Linear, value: Value) -> Value:
        is_conv = isinstance(layer, nn.Conv2d)
        strides, pads = (layer.stride, layer.padding) if is_conv else ((1, 1), (0, 0))
        if is_conv and (layer.groups, layer.dilation, getattr(layer, "pad_value", 0)) != PLAIN:
            raise Missing(f"no binary graph here has groups, dilation or a pad_value: {layer}")
        scale = None
        if takes_signs(layer):
            node, (weight, scale) = self._bits(value), layer.signs_and_scale()
        else:
            node, weight = self._real(value), getattr(layer, "binary_weight", layer.weight)
        if not is_conv:  # a convolution over the whole map
            weight = weight.unflatten(1, tuple(node.get_output_shape(0))[1:])
        if takes_signs(layer):
            sums = binary_conv(node, weight, strides, pads)
        else:
            kernel = weight.contiguous().numpy()
            pads = list(pads)
            sums = self.opset.convolution(node, kernel, list(strides), pads, pads, [1, 1])
        result = Value(self._named(sums))
        result = result if scale is None else result.then(scale, torch.zeros(1))
        return result if layer.bias is None else result.then(torch.ones(1), layer.bias)

    def _elementwise_or_pool(self, layer: nn.Module, node: Any) -> Any:
        if isinstance(layer, nn.Hardtanh):
            return self.opset.clamp(node, layer.min_val, layer.max_val)
        if isinstance(layer, nn.PReLU):
            return self.opset.prelu(node, layer.weight.numpy())
        if isinstance(layer, Twice):
            return self.opset.concat([node, node], 1)
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            self.place = "head"
            return self.opset.reduce_mean(node, np.array([2, 3]), keep_dims=True)
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            kernel, strides, pads = map(_pair, (layer.kernel_size, layer.stride, layer.padding))
            rounding = "ceil" if layer.ceil_mode else "floor"
            if isinstance(layer, nn.MaxPool2d):
                return self.opset.max_pool(node, strides, pads, pads, kernel, rounding)
            # What lies outside of the map does not count in torch's means, unless it is padding.
            return self.opset.avg_pool(node, strides, pads, pads, kernel, not any(pads), rounding)
        raise Missing(f"{type(layer).__name__} has no binary graph here")


def _per_channel(values: Tensor) -> np.ndarray:
    return values.view(1, -1, 1, 1).numpy()


def _pair(size: int | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _has_one_reader(node: Any) -> bool:
    return len(node.output(0).get_target_inputs()) == 1


def peer(work: Work, model: nn.Module) -> list[Implementation]:
    """The graph of `model`, checked and ready to be timed."""
    run = OpenvinoRequest(Network(model, work.x.shape).model, work.x, work.threads)
    output = torch.as_tensor(run())
    check("OpenVINO binary", output.flatten(1), work.expected, ROUNDING)
    return [Implementation("OpenVINO binary", "float32", run, work.macs)]


def counted_parts(model: nn.Module, x: Tensor, threads: int, calls: int) -> list[Part]:
    """Where the graph's time goes by OpenVINO's own counters: by place, type and kernel."""
    fresh = OpenvinoRequest(Network(model, x.shape).model, x, threads, profile=True)
    times = counted_microseconds(fresh, calls)
    parts: dict[str, list[float]] = defaultdict(list)
    for info in fresh.request.profiling_info:
        if info.status == info.Status.EXECUTED:
            place = info.node_name.split(" ")[0]
            name = f"{place if place in PLACES else 'layout'} {info.node_type} {info.exec_type}"
            parts[name].append(1e-6 * times[info.node_name])
    return shares("OpenVINO binary", parts)
