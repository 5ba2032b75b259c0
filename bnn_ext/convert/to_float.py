"""The converted network in floats: plain torch, to export, to profile, or to read.

Every operator on bits has its float form here, in ordinary torch code that `torch.fx` writes down:
bits are ±1, channels are dimension 1 of a map `[N, C, H, W]`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bnn_ext import ops, reference
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.nn.packed import OperatorLayer, geometry
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.pooling import RealGlobalAvgPool2d, RealMaxPool2d, RealPool
from bnn_ext.nn.real_inputs import BinaryWeightConv2d, BinaryWeightLinear
from bnn_ext.nn.torch_calls import ToFormat, TorchCall, fill
from bnn_ext.reference import WORD_BITS, unpack_bits

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the dimensions of their weight


def to_float(network: PackedNetwork) -> fx.GraphModule:
    """Makes a network of torch's own layers and functions that gives the same outputs.

    Weights of ±1 are frozen parameters of `torch.nn.Conv2d` and `torch.nn.Linear`, which can hold
    them as they are; thresholds are comparisons, packed pools are max-pools. Nothing of this
    package is left, also not in a pickle of the result: it can be exported (to ONNX, say),
    profiled, and run where this package is not installed. Real layers can be trained on, as far as
    gradients reach: comparisons give none.

    The outputs are the same, bit for bit, but for two things. Real inputs times binary weights are
    summed in another order by `RealInputConv2d` and `RealInputLinear`, which networks of
    `convert(real_layers="fused")` have: where such sums are not exact, an activation within
    rounding of its threshold can fall on the other side. And the step `multiply_add` rounds once,
    here to float64 and then to float32, which differs in about one of 2^29 values.

    Args:
        network: what `convert` or `load` gave; not changed, and no memory is shared with it.

    Returns:
        A `torch.fx.GraphModule` in eval mode with the same inputs and outputs. Its modules and
        buffers are called like the steps of the network, with `_` for each dot.

    Raises:
        TypeError: `network` is something else.
    """
    if not isinstance(network, PackedNetwork):
        raise TypeError(f"network must be a PackedNetwork, found {type(network).__name__}")
    writer = _Writer()
    values = {name: writer.input(name) for name in network.inputs}
    for node, module in zip(network.nodes, network.steps, strict=True):
        results = writer.layer(node.name, module, [values[name] for name in node.inputs])
        values.update(zip(node.outputs, results, strict=True))
    writer.graph.output(pytree.tree_map(lambda name: values[name].node, network.structure))
    return fx.GraphModule(writer.root, writer.graph, "FloatNetwork").eval()


class _Writer:
    """Writes layers down, one after the other; values are `torch.fx.Proxy`."""

    def __init__(self) -> None:
        self.root = nn.Module()  # owns modules and buffers
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)

    def write(self, kind: str, target: Any, *arguments: Any, **keywords: Any) -> Any:
        """A new node of `torch.fx`, as a value."""
        return self.tracer.create_proxy(kind, target, arguments, keywords)

    def input(self, name: str) -> Any:
        return self.write("placeholder", name.replace(".", "_"))

    def layer(self, name: str, layer: nn.Module, inputs: list[Any]) -> Sequence[Any]:
        """What the layer gives: one value, or floats and bits."""
        if isinstance(layer, TorchCall):
            return [self.torch_call(name, layer, inputs)]
        if isinstance(layer, ToFormat):
            memory = torch.channels_last if layer.channels_last else torch.contiguous_format
            return [inputs[0].clone(memory_format=memory)]
        if isinstance(layer, (BinaryWeightConv2d, BinaryWeightLinear)):
            return [self.binary_weight(name, layer, *inputs)]
        if not isinstance(layer, OperatorLayer):  # a model that could not be read
            return [self.module(name, copy.deepcopy(layer))(*inputs)]
        if isinstance(layer, RealGlobalAvgPool2d):  # AdaptiveAvgPool2d sums in another order
            (x,) = inputs
            return [self.write("call_function", F.avg_pool2d, x, (x.size(2), x.size(3)))]
        if isinstance(layer, RealPool):
            kind = nn.MaxPool2d if isinstance(layer, RealMaxPool2d) else nn.AvgPool2d
            window = {key: getattr(layer, key) for key in layer.attribute_names}
            return [self.module(name, kind(**window))(*inputs)]
        if isinstance(layer, PointwiseConv2d):
            return [self.pointwise(name, layer, *inputs)]
        operator, arguments = layer.call(inputs)
        x = arguments.pop("input", None)
        if operator == "select_channels":
            return [self.select_channels(name, **arguments)]
        if operator == "flatten":
            return [arguments["packed"].permute(0, 2, 3, 1).flatten(1)]
        if operator == "max_pool2d":
            return [self.max_pool2d(name, x, **arguments)]
        if "weight" in arguments:
            x = self.product(name, x, **arguments)
        is_map = "conv2d" in operator or getattr(layer, "is_map", False)
        return self.finish(name, x, is_map, arguments)

    # --- what has a name --------------------------------------------------------------------------

    def own(self, name: str) -> str:
        """A free name for a module or buffer."""
        name = name.replace(".", "_")
        while hasattr(fx.GraphModule, name) or hasattr(self.root, name):
            name += "_"
        return name

    def module(self, name: str, module: nn.Module) -> Any:
        """A module to be called with values."""
        name = self.own(name)
        self.root.add_module(name, module)
        return functools.partial(self.write, "call_module", name)

    def buffer(self, name: str, tensor: Tensor) -> Any:
        name = self.own(name)
        self.root.register_buffer(name, tensor.detach().clone())
        return self.write("get_attr", name)

    def vector(self, name: str, values: Tensor, is_map: bool) -> Any:
        """Values `[C]`, to meet the channels of a map or of rows."""
        return self.buffer(name, values.view(-1, 1, 1) if is_map else values)

    # --- bits -------------------------------------------------------------------------------------

    def select_channels(
        self, name: str, inputs: Sequence[Any], channels: Sequence[int], index: Tensor
    ) -> Any:
        together = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)
        if torch.equal(index.cpu(), torch.arange(sum(channels), dtype=index.dtype)):
            return together
        return together.index_select(1, self.buffer(f"{name}_index", index))

    def max_pool2d(self, name: str, x: Any, minimum: Tensor | None, **window: Any) -> Any:
        pool = self.module(name, nn.MaxPool2d(**window))
        if minimum is None:
            return pool(x)
        lowest = unpack_bits(minimum, WORD_BITS * minimum.shape[0])
        signs = self.vector(f"{name}_signs", torch.where(lowest, -1.0, 1.0), is_map=True)
        signs = signs[: x.shape[1]]  # without the tail of the last word
        return pool(x * signs) * signs

    # --- products ---------------------------------------------------------------------------------

    def product(self, name: str, x: Any, weight: Tensor, **arguments: Any) -> Any:
        """Sums of products, with a weight of packed bits."""
        if weight.dim() == 2:
            return self.linear(name, x, ops.unpack(weight, arguments["in_features"]))
        fan_in = arguments["in_channels"] // arguments["groups"]
        # Permuted, the weight is in torch.channels_last, and so is what it gives, like ours.
        signs = ops.unpack(weight, fan_in).permute(0, 3, 1, 2)
        return self.conv2d(name, x, signs, **arguments)

    def binary_weight(self, name: str, layer: Any, x: Any) -> Any:
        """Real input and binary weight, summed by torch."""
        is_map = isinstance(layer, BinaryWeightConv2d)
        if is_map:
            sums = self.conv2d(name, x, layer.signs, **geometry(layer))
        else:
            sums = self.linear(name, x, layer.signs)
        return self.scaled(name, sums, is_map, layer.scale, layer.bias, layer.float_dtype)

    def linear(self, name: str, x: Any, signs: Tensor) -> Any:
        out, features = signs.shape
        return self.module(name, _holding(signs, None, nn.Linear, features, out))(x)

    def conv2d(
        self,
        name: str,
        x: Any,
        signs: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        pad_value: int,
        **_: Any,
    ) -> Any:
        if pad_value:
            vertical, horizontal = padding
            sizes = (horizontal, horizontal, vertical, vertical)
            x = self.module(f"{name}_pad", nn.ConstantPad2d(sizes, float(pad_value)))(x)
            padding = (0, 0)
        window = (tuple(signs.shape[2:]), stride, padding, dilation, groups)
        channels = (signs.shape[1] * groups, signs.shape[0])
        return self.module(name, _holding(signs, None, nn.Conv2d, *channels, *window))(x)

    def pointwise(self, name: str, layer: PointwiseConv2d, x: Any) -> Any:
        out, features = layer.weight.shape
        linear = self.module(name, _holding(layer.weight, layer.bias, nn.Linear, features, out))
        return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    # --- what follows them ------------------------------------------------------------------------

    def finish(self, name: str, x: Any, is_map: bool, arguments: dict[str, Any]) -> list[Any]:
        """Floats or bits of the sums, or both, as the operator's arguments ask for."""
        threshold, flip = arguments.get("threshold"), arguments.get("flip")
        if "steps" in arguments:
            for i, (operation, *operands) in enumerate(arguments["steps"]):
                own = f"{name}_{operation}_{i}"
                values = [
                    self.vector(own, operand, is_map) if isinstance(operand, Tensor) else operand
                    for operand in operands
                ]
                x = _step(x, operation, *values)
            results = []
            if arguments["dtype"] is not None:
                if is_map:  # the format of our maps, for sums of real values behind it
                    x = x.contiguous(memory_format=torch.channels_last)
                x = _cast(x, arguments["dtype"])
                results.append(x)
            if threshold is not None:
                results.append(self.compare(name, x, is_map, threshold, flip))
            return results
        if "scale" in arguments:
            scale, bias = arguments["scale"], arguments["bias"]
            dtype = arguments.get("dtype", torch.float32)
            return [self.scaled(name, x, is_map, scale, bias, dtype)]
        return [self.compare(name, x, is_map, threshold, flip)]

    def scaled(
        self,
        name: str,
        x: Any,
        is_map: bool,
        scale: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Any:
        if scale is not None:
            x = x * self.vector(f"{name}_scale", scale, is_map)
        if bias is not None:
            x = x + self.vector(f"{name}_bias", bias, is_map)
        return _cast(x, dtype)

    def compare(
        self, name: str, x: Any, is_map: bool, threshold: Tensor | None, flip: Tensor | None
    ) -> Any:
        """±1: whether the threshold is reached, from above where the flip bit is set."""
        if threshold is None:
            return torch.where(x >= 0, 1.0, -1.0)
        limit = threshold.float()  # integers between -2^24 and 2^24 are floats, others out of reach
        if flip is not None:
            signs = torch.where(unpack_bits(flip, limit.shape[0]), -1.0, 1.0)
            x = x * self.vector(f"{name}_signs", signs, is_map)
            limit = limit * signs
        return torch.where(x >= self.vector(f"{name}_threshold", limit, is_map), 1.0, -1.0)

    # --- calls of torch ---------------------------------------------------------------------------

    def torch_call(self, name: str, call: TorchCall, inputs: list[Any]) -> Any:
        """A call as it is; convolutions and linear layers as modules."""
        tensors = call.tensors()
        if (module := _as_module(call, tensors)) is not None:
            return self.module(name, module)(*inputs)
        owned = {key: self.buffer(f"{name}_{key}", tensor) for key, tensor in tensors.items()}
        arguments = fill(call.arguments, inputs, owned)
        keywords = {key: fill(value, inputs, owned) for key, value in call.keywords.items()}
        return self.write("call_function", call.function, *arguments, **keywords)


def _step(x: Any, operation: str, *operands: Any) -> Any:
    """As in `bnn_ext.reference`, but for the one that has to look at bits to round once."""
    if operation == "multiply_add":
        factor, addend = operands
        return torch.addcmul(addend.double(), x.double(), factor.double()).float()
    return reference.apply_step(x, operation, *operands)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x if dtype == torch.float32 else x.to(dtype)


def _holding(weight: Tensor, bias: Tensor | None, kind: Any, *arguments: Any) -> nn.Module:
    """A layer of torch around a weight, which is frozen where it is ±1."""
    layer: nn.Module = kind(*arguments, bias=bias is not None, device="meta")
    frozen = bool((weight.abs() == 1).all())
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=not frozen)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _as_module(call: TorchCall, tensors: dict[str, Tensor]) -> nn.Module | None:
    """The layer of torch that makes the call, if its weight and bias are constants."""
    if call.operator not in ("convolution.default", "linear.default") or len(tensors) == 0:
        return None
    input, weight, *rest = fill(call.arguments, [None], tensors)
    bias, *rest = rest or [None]
    constants = len(tensors) == (1 if bias is None else 2)
    if call.operator == "linear.default":
        return _holding(weight, bias, nn.Linear, *weight.shape[::-1]) if constants else None
    stride, padding, dilation, transposed, _, groups = rest
    kind = _CONVOLUTIONS.get(weight.dim())
    if transposed or kind is None or not constants:
        return None
    channels = (weight.shape[1] * groups, weight.shape[0])
    window = (tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)
    return _holding(weight, bias, kind, *channels, *window)
