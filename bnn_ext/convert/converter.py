"""`convert`: the order of events."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnn_ext.convert.capture import Capture, CaptureError, capture
from bnn_ext.convert.examples import example_for
from bnn_ext.convert.lower import lower
from bnn_ext.convert.network import INPUT, Node, PackedNetwork
from bnn_ext.convert.passes import (
    compare_at_sources,
    find_products,
    fold_batch_norms,
    join_finishes,
    name_moves,
)
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.convert.reporting import Origins
from bnn_ext.convert.summary import tensor_bytes
from bnn_ext.convert.verify import verify as run_verify

Examples = Tensor | Sequence[Tensor]


def convert(
    model: nn.Module,
    example_inputs: Examples | None = None,
    *,
    verify: bool = True,
    real_layers: str = "fused",
) -> PackedNetwork:
    """Makes a network that gives the same outputs on packed bits.

    The model runs on the examples, and what it computes is written down: whose layers these are,
    and how they binarize, does not matter. Where a weight is ±s and the input ±1, the layer runs on
    bits. Between such layers only bits pass where the model allows it: BatchNorm, activations, bias
    and scale become one integer threshold per channel, found on the model's own calls, so that each
    bit is the same; elsewhere they are applied to the sums before these leave the registers. What
    is not binary stays as it was; `report` of the result says what became of each layer, and why.

    Args:
        model: in eval mode; not changed.
        example_inputs: a batch of real inputs, or a sequence of them for a model with several.
            Batches of other sizes can be given later, and maps of other sizes to a model that takes
            them. Without it, noise in a shape that the model takes is used, if it shows which.
        verify: whether to compare the outputs with the model's on `example_inputs`;
            `report.verification` has the figures. A difference gives a warning, where "fused" real
            layers round in another order only a different prediction.
        real_layers: "fused" runs layers with a real input and binary weights by our kernels, whose
            float32 sums are rounded in another order than torch's, takes BatchNorm into real layers
            and thresholds behind them, multiplies matrices where real convolutions are 1x1, and
            averages whole maps row after row: an activation within rounding of its threshold can
            fall on the other side. "torch" lets torch sum all real values as in the model, so that
            all outputs are the same, bit for bit, for inputs in the memory format of the examples.

    Returns:
        A module with the same inputs and outputs as the model.

    Raises:
        TypeError: `model` is not a module, or `example_inputs` holds something else than tensors.
        ValueError: `model` is in training mode, `real_layers` is neither of the two, or the shape
            of the inputs cannot be told without examples.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if real_layers not in ("fused", "torch"):
        raise ValueError(f'real_layers must be "fused" or "torch", found {real_layers!r}')
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "model must be in eval mode, found training mode in "
                f"{name or 'the model'}; call model.eval() first"
            )
    given = example_inputs is not None
    inputs = checked_inputs(example_inputs) if given else example_for(model)
    with torch.inference_mode(False), torch.no_grad():  # buffers are to be ordinary tensors
        try:
            captured = capture(model, inputs)
            fast = _converted(captured, real_layers == "torch")
        except CaptureError as error:
            fast = _whole(model, len(inputs), str(error))
    if verify and given:
        verification = run_verify(model, fast, inputs)
        fast.report.verification = verification
        # Rounding is no reason to warn where it was allowed, unless it has consequences.
        if verification.different_predictions or not (verification.equal or fast.rounds):
            warnings.warn(f"the converted network is not equal: {verification}", stacklevel=2)
    return fast


def checked_inputs(inputs: Any) -> list[Tensor]:
    """The model's inputs as a list.

    Raises:
        TypeError: there is something else than tensors among them.
    """
    listed = [inputs] if isinstance(inputs, Tensor) else inputs
    if not isinstance(listed, (tuple, list)) or not all(isinstance(x, Tensor) for x in listed):
        found = (
            ", ".join(type(x).__name__ for x in listed)
            if isinstance(listed, (tuple, list))
            else type(inputs).__name__
        )
        raise TypeError(f"example_inputs must be a tensor or a sequence of them, found {found}")
    return list(listed)


def _converted(captured: Capture, exact: bool) -> PackedNetwork:
    graph = captured.graph
    origins = Origins(graph)
    name_moves(graph)
    find_products(graph)
    origins.note_signs(graph)
    if not exact:
        fold_batch_norms(graph)
    compare_at_sources(graph, real_products=not exact)
    join_finishes(graph)
    lowered = lower(graph, exact=exact)
    report = origins.report(graph, lowered)
    report.notes = [*captured.notes, *report.notes]
    structure = pytree.tree_unflatten(lowered.outputs, captured.spec)
    rounds = any(node.meta.get("rounds") for node in graph.nodes)
    return PackedNetwork(
        lowered.nodes, lowered.inputs, structure, report, rounds or lowered.rounds, lowered.origins
    )


def _whole(model: nn.Module, inputs: int, why: str) -> PackedNetwork:
    """The model as it is, one step."""
    kind = type(model).__name__
    size = tensor_bytes(model)
    names = [f"{INPUT}_{i}" for i in range(inputs)]
    node = Node("model", copy.deepcopy(model), tuple(names), ("output",))
    report = Report([LayerReport("", kind, "left", why, size, size)])
    return PackedNetwork([node], names, "output", report)
