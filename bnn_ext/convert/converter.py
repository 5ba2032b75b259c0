"""`convert`: the order of events."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from bnn_ext.convert.fuse import fuse
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.convert.report import Report
from bnn_ext.convert.sequence import layers_of, record_shapes
from bnn_ext.convert.verify import sums_real_inputs
from bnn_ext.convert.verify import verify as run_verify


def convert(
    model: nn.Module,
    example_inputs: Tensor | None = None,
    *,
    verify: bool = True,
    real_layers: str = "fused",
) -> PackedNetwork:
    """Makes a network that gives the same outputs on packed bits.

    Reads models built of (nested) Sequentials. Between binary layers only bits pass: BatchNorm,
    activations, bias and scale become one integer threshold per channel, found on the real float
    chain, so that every bit is the same. Layers that cannot run on bits are left as they were;
    `report` of the result says which, and why.

    Args:
        model: in eval mode; not changed.
        example_inputs: a batch of real inputs, to verify with, to count multiply-accumulates, and
            to see shapes and memory formats: without it, linear layers are taken to see
            `[N, features]`, and maps to be contiguous.
        verify: whether to compare the outputs with the model's on `example_inputs`;
            `report.verification` has the figures. A difference gives a warning, where "fused" real
            layers round in another order only a different prediction.
        real_layers: "fused" runs layers with a real input and binary weights by our kernels, whose
            float32 sums are rounded in another order than torch's: an activation within rounding of
            its threshold can fall on the other side. Behind them, and behind other real layers, the
            activation becomes a threshold. "torch" runs everything up to there as it was, so that
            all outputs are the same, bit for bit.

    Returns:
        A module with the same input and output as the model.

    Raises:
        TypeError: `model` is not a module, or `example_inputs` not a tensor.
        ValueError: `model` is in training mode, or `real_layers` is neither of the two.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if example_inputs is not None and not isinstance(example_inputs, Tensor):
        raise TypeError(f"example_inputs must be a tensor, found {type(example_inputs).__name__}")
    if real_layers not in ("fused", "torch"):
        raise ValueError(f'real_layers must be "fused" or "torch", found {real_layers!r}')
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "model must be in eval mode, found training mode in "
                f"{name or 'the model'}; call model.eval() first"
            )

    layers = layers_of(model)
    if example_inputs is not None:
        record_shapes(layers, example_inputs)
    nodes, reports = fuse(layers, fuse_real=real_layers == "fused")
    fast = PackedNetwork(nodes, Report(reports))
    for parameter in model.parameters():
        fast.to(parameter.device)
        break
    if verify and example_inputs is not None:
        verification = run_verify(model, fast, example_inputs)
        fast.report.verification = verification
        # Rounding is no reason to warn where it was allowed, unless it has consequences.
        if verification.different_predictions or not (verification.equal or sums_real_inputs(fast)):
            warnings.warn(f"the converted network is not equal: {verification}", stacklevel=2)
    return fast
