"""A model as a graph of what it computes, whoever wrote it and however.

The model runs once on example inputs, under a mode that sees every operator below autograd. What
depends on the inputs becomes a node of a `torch.fx.Graph`; everything else (parameters, and what
the model makes of them) is a constant with its value. So it does not matter which classes the
layers have, whether they binarize in an autograd Function of their own or write into `.data`, which
no tracer of Python code follows (`torch.export` refuses it): a tensor is known by the memory that
it shows, not by its name in Python.

A second run with one sample more tells which sizes follow the batch; they become -1.

Nodes are functional ATen calls in few spellings: in-place operators become what they compute,
`addmm` and `mm` become `linear`, and so on. `node.meta` has

    shape            of the result (for the batch of the examples)
    dtype, device    of the result
    channels_last    whether its memory is in torch.channels_last
    reads            of a call: the memory format of its first argument, torch.preserve_format for a
                     part of a larger tensor; torch rounds otherwise in another one
    zeros            share of the result that is 0, if it is of floats
    layer, kind      name and class of the innermost module that made the call
    call             name of the node, which passes hand on to what takes its place
    tensor           of a constant (`get_attr`): its value

and with `keep_values` also `value`, the result itself.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnn_ext.nn.packed import is_channels_last

aten = torch.ops.aten

# Calls whose result is their input, as far as values go.
_SAME = {
    aten.detach.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
_BATCH_NORMS = {
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
}


class CaptureError(ValueError):
    """Why a model cannot become a graph, in words."""


@dataclass
class Capture:
    """A model as a graph.

    Attributes:
        graph: its nodes.
        spec: how the outputs are arranged (tuple, dict, ...), for `torch.utils._pytree`.
        notes: what the graph takes for granted, in words.
    """

    graph: Graph
    spec: pytree.TreeSpec
    notes: list[str] = field(default_factory=list)


def capture(model: nn.Module, inputs: Sequence[Tensor], *, keep_values: bool = False) -> Capture:
    """Runs the model and writes down what it computes.

    Args:
        model: in eval mode; a copy of it runs, so it stays as it is.
        inputs: its positional arguments.
        keep_values: whether nodes keep their results.

    Raises:
        CaptureError: what the model does cannot be written down.
    """
    found = _run(model, inputs, keep_values)
    larger = _run(model, [_one_more(x) for x in inputs], keep_values=False)
    _mark_batch(found.graph, larger.graph)
    found.graph.eliminate_dead_code()
    return found


def _one_more(x: Tensor) -> Tensor:
    """The batch with its first sample once more."""
    if x.dim() == 0 or x.shape[0] == 0:
        raise CaptureError(f"inputs must be batches of at least one sample, found {tuple(x.shape)}")
    memory = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.cat([x, x[:1]]).contiguous(memory_format=memory)


def _run(model: nn.Module, inputs: Sequence[Tensor], keep_values: bool) -> Capture:
    # Tensors that are made in inference mode run other operators, also outside of it.
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model)  # foreign layers write into their parameters
        recorder = _Recorder(model, keep_values)
        arguments = [recorder.input(x.clone()) for x in inputs]  # models may work in place
        with recorder.following_modules(model), recorder:
            outputs = model(*arguments)
    flat, spec = pytree.tree_flatten(outputs)
    for value in flat:
        if not isinstance(value, Tensor):
            raise CaptureError(f"the model must return tensors, found {type(value).__name__}")
    recorder.graph.output([recorder.argument(value) for value in flat])
    return Capture(recorder.graph, spec, recorder.notes)


_Key = tuple[Any, ...]


def _key(tensor: Tensor) -> _Key:
    """What part of which memory a tensor shows."""
    storage = tensor.untyped_storage()
    return storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


class _Recorder(TorchDispatchMode):
    """Writes down the operators that run."""

    def __init__(self, model: nn.Module, keep_values: bool) -> None:
        super().__init__()
        self.graph = Graph()
        self.notes: list[str] = []
        self._keep_values = keep_values
        self._nodes: dict[_Key, Node] = {}  # of what depends on the inputs
        self._constants: dict[_Key, Node] = {}
        self._written: set[int] = set()  # memory of which only the views in `_nodes` are known
        self._alive: list[Tensor] = []  # memory that is freed would be given out again
        self._modules: list[tuple[str, str]] = [("", type(model).__name__)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would import torch's compiler, which takes seconds

    # --- where we are -----------------------------------------------------------------------------

    @contextmanager
    def following_modules(self, model: nn.Module) -> Iterator[None]:
        """Knows which module is running."""
        hooks = []
        for name, module in model.named_modules():
            place = (name, type(module).__name__)

            def enter(*_: Any, place: tuple[str, str] = place) -> None:
                self._modules.append(place)

            def leave(*_: Any) -> None:
                self._modules.pop()

            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    # --- what is known of tensors -----------------------------------------------------------------

    def input(self, tensor: Tensor) -> Tensor:
        self._name(tensor, self.graph.placeholder(f"input_{len(self._nodes)}"))
        return tensor

    def argument(self, value: Any) -> Any:
        """The node of a tensor, a constant if it depends on no input; other values as they are."""
        if not isinstance(value, Tensor):
            return value
        return self._nodes.get(_key(value)) or self.constant(value)

    def constant(self, tensor: Tensor) -> Node:
        key = _key(tensor)
        if key[0] in self._written:
            raise CaptureError(
                f"{self._where()} uses a tensor that was written through another view of it"
            )
        if key not in self._constants:
            self._alive.append(tensor)
            node = self.graph.get_attr(f"constant_{len(self._constants)}")
            node.meta = self._meta(tensor) | {"tensor": tensor.detach().clone()}
            self._constants[key] = node
        return self._constants[key]

    def _depends(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _key(value) in self._nodes

    def _name(self, tensor: Tensor, node: Node) -> None:
        """From now on the tensor's memory holds the node's result."""
        self._nodes[_key(tensor)] = node
        self._alive.append(tensor)
        if "shape" not in node.meta:
            node.meta |= self._meta(tensor) | {"call": node.name}
            if tensor.is_floating_point() and tensor.numel():
                node.meta["zeros"] = float((tensor == 0).double().mean())
            if self._keep_values:
                node.meta["value"] = tensor.detach().clone()

    def _meta(self, tensor: Tensor) -> dict[str, Any]:
        layer, kind = self._modules[-1]
        return {
            "shape": tuple(tensor.shape),
            "dtype": tensor.dtype,
            "device": tensor.device,
            "channels_last": is_channels_last(tensor),
            "layer": layer,
            "kind": kind,
        }

    def _where(self) -> str:
        return _place(*self._modules[-1])

    # --- what runs --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        if not any(map(self._depends, pytree.arg_tree_leaves(*args, **kwargs))):
            if written is not None:  # a constant gets a new value
                self._forget(written)
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.notes.append(
                f"{self._where()} reads a value in Python: what it did for the example is kept"
            )
            return func(*args, **kwargs)
        if func in _SAME or _is_plain_copy(func, args, kwargs) or _is_same_view(func, args):
            same = self.argument(args[0])
            out = func(*args, **kwargs)
            self._name(out, same)
            return out

        node = self._call(func, args, kwargs)  # before anything is written
        first = next(filter(torch.is_tensor, pytree.arg_tree_leaves(*args, **kwargs)))
        node.meta["reads"] = _memory_format(first)
        out = func(*args, **kwargs)
        if node.target == aten.reshape.default:  # a size may have been left open
            node.args = (node.args[0], list(out.shape))
        if written is not None:
            self._forget(written)
            self._written.add(_key(written)[0])
            self._name(written, node)
        elif isinstance(out, Tensor):
            self._name(out, node)
        else:
            self._name_results(func, node, out)
        return out

    def _name_results(self, func: Any, node: Node, results: Sequence[Tensor | None]) -> None:
        if node.target is not func:  # a spelling with one result; the others are seldom used
            first, *rest = results
            assert first is not None
            self._name(first, node)
            for result in rest:
                if result is not None:
                    self._written.add(_key(result)[0])
                    self._alive.append(result)
            return
        node.meta |= {"layer": self._modules[-1][0], "kind": self._modules[-1][1]}
        for index, result in enumerate(results):
            if result is not None:
                self._name(result, self.graph.call_function(operator.getitem, (node, index)))

    def _forget(self, tensor: Tensor) -> None:
        """All views of the tensor's memory, which is about to hold something else."""
        storage = _key(tensor)[0]
        for known in (self._nodes, self._constants):
            for key in [key for key in known if key[0] == storage]:
                del known[key]

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """A node for the call, in its one spelling."""
        name = func._schema.name.removeprefix("aten::")
        if func is aten.copy_.default:
            return self._copied(*args)
        if func._schema.is_mutable and func not in _BATCH_NORMS:
            if not name.endswith("_"):
                raise CaptureError(f"{self._where()} calls {name}, which writes into its arguments")
            func = getattr(getattr(aten, name[:-1]), func._overloadname)
        if torch.Tag.pointwise in func.tags:
            args, kwargs = pytree.tree_map(self._not_expanded, (args, kwargs))
        if func in (aten.mm.default, aten.addmm.default) and not self._depends(args[-1]):
            bias = None if func is aten.mm.default else args[0]
            if not kwargs and not self._depends(bias):
                func, args = aten.linear.default, (args[-2], args[-1].t(), bias)
        func, args, kwargs = _one_spelling(func, args, kwargs)
        return self.graph.call_function(func, *pytree.tree_map(self.argument, (args, kwargs)))

    def _not_expanded(self, value: Any) -> Any:
        """A constant with size 1 where it repeats itself: broadcasting does the same.

        So a bias that was expanded to the size of its output does not follow the batch.
        """
        if isinstance(value, Tensor) and not self._depends(value):
            for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
                if stride == 0 and size > 1:
                    value = value.narrow(dim, 0, 1)
        return value

    def _copied(self, to: Tensor, source: Any, *_: Any) -> Node:
        """What a tensor holds after another one is copied into it."""
        node = self.argument(source)
        if source.dtype != to.dtype:
            node = self.graph.call_function(aten._to_copy.default, (node,), {"dtype": to.dtype})
        return self.graph.call_function(aten.expand.default, (node, list(to.shape)))


def _place(layer: str, kind: str) -> str:
    return f"{kind} at {layer}" if layer else kind


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if is_channels_last(tensor):
        return torch.channels_last
    return torch.contiguous_format if tensor.is_contiguous() else torch.preserve_format


def _is_plain_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """A cast to the dtype and device that the tensor has."""
    if func is not aten._to_copy.default:
        return False
    tensor = args[0]
    same_dtype = kwargs.get("dtype") in (None, tensor.dtype)
    return same_dtype and kwargs.get("device") in (None, tensor.device)


def _is_same_view(func: Any, args: tuple[Any, ...]) -> bool:
    """Other strides only where they say nothing, in dimensions of size 1."""
    if func not in (aten.as_strided.default, aten.as_strided_.default) or len(args) > 3:
        return False
    tensor, size, strides = args
    return list(tensor.shape) == list(size) and all(
        ours == theirs or n == 1
        for n, ours, theirs in zip(size, tensor.stride(), strides, strict=True)
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that the call overwrites, None if it makes a new one."""
    if not func._schema.is_mutable or func in _BATCH_NORMS:
        return None
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor):
                return value
    return None


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _one_spelling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """The same call by the operator that the passes know."""
    if func in _RESHAPES:
        return aten.reshape.default, args, {}  # also of maps in another memory format
    if func is aten._prelu_kernel.default:
        return aten.prelu.default, (args[0], args[1].flatten()), {}
    if func is aten.max_pool2d_with_indices.default:
        return aten.max_pool2d.default, args, kwargs
    if func is aten.native_group_norm.default:  # its other arguments are sizes
        input, weight, bias, _, _, _, groups, eps = args
        return aten.group_norm.default, (input, groups, weight, bias, eps, True), {}
    if func in _BATCH_NORMS:
        input, weight, bias, mean, variance = args[:5]
        if func is aten._native_batch_norm_legit_no_training.default:
            training, (momentum, eps) = False, args[5:7]
        else:
            training, momentum, eps = args[5:8]
        statistics = (input, weight, bias, mean, variance)
        return aten.batch_norm.default, (*statistics, training, momentum, eps, True), {}
    return func, args, kwargs


# --- sizes that follow the batch ------------------------------------------------------------------


def _mark_batch(graph: Graph, larger: Graph) -> None:
    """Replaces sizes that differ between the two graphs, whose batches differ, by -1."""
    if len(graph.nodes) != len(larger.nodes):
        raise CaptureError("the model computes something else for another batch size")
    for node, twin in zip(graph.nodes, larger.nodes, strict=True):
        if node.op != twin.op or node.target != twin.target:
            raise CaptureError("the model computes something else for another batch size")
        if node.op == "get_attr" and node.meta["shape"] != twin.meta["shape"]:
            raise CaptureError(
                f"{node.meta['kind']} at {node.meta['layer'] or 'the top'} makes a constant whose "
                "size follows the batch"
            )
        if node.op == "call_function":
            node.args = _merge(node, node.args, twin.args)


def _merge(node: Node, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, (tuple, list)):
        pairs = list(zip(ours, theirs, strict=True))
        if (
            len(ours)
            and all(isinstance(value, int) for value in ours)
            and list(ours) != list(theirs)
        ):
            sizes = [value if value == other else -1 for value, other in pairs]
            if (
                node.target not in (aten.reshape.default, aten.expand.default)
                or sizes.count(-1) > 1
            ):
                raise CaptureError(
                    f"{node.meta['kind']} at {node.meta['layer'] or 'the top'} calls {node.target} "
                    "with sizes that follow the batch"
                )
            return sizes
        return type(ours)(_merge(node, value, other) for value, other in pairs)
    if isinstance(ours, (int, float)) and ours != theirs and ours == ours:  # NaN is no other NaN
        raise CaptureError(
            f"{node.meta['kind']} at {node.meta['layer'] or 'the top'} calls {node.target} with a "
            f"number that follows the batch ({ours} became {theirs})"
        )
    return ours
