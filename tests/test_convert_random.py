"""Random graphs of layers: the converted network gives what the model gives, bit for bit."""

from __future__ import annotations

import functools

import pytest
import torch
from random_models import RandomGraph
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.fused import Elementwise, FusedConv2d, FusedLinear
from bnn_ext.nn.packed import PackedConv2d, PackedLinear, SelectChannels, is_channels_last

SEEDS = range(500)
FUSED_SEEDS = range(100)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's remark on even kernels with padding="same", which the random graphs draw on purpose.
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


def another_batch(input: Tensor) -> Tensor:
    """Four other samples in the same memory format: in another one sums round otherwise."""
    memory = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return torch.randn(4, *input.shape[1:]).clone(memory_format=memory)


@functools.cache
def drawn(seed: int) -> RandomGraph:
    return RandomGraph(seed)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_every_output_is_equal(seed):
    model, x = drawn(seed).model, drawn(seed).input
    fast = bnn_ext.convert(model, x, verify=False, real_layers="torch")
    for input in (x, another_batch(x)):
        for expected, found in zip(model(input.clone()), fast(input.clone()), strict=True):
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), seed
            assert found.dtype == expected.dtype
    assert_binary_layers_run_on_bits(model, fast)


def assert_binary_layers_run_on_bits(model: nn.Module, fast: PackedNetwork) -> None:
    report = {layer.name: layer for layer in fast.report.layers}
    for name, module in model.named_modules():
        if isinstance(module, (bnn.BinaryConv2d, bnn.BinaryLinear)) and name in report:
            layer = report[name]
            assert layer.status in ("fused", "packed"), layer
            assert layer.reason, layer
            lopsided = module.weight.dim() == 4 and module.padding == "same"
            if module.input_quantizer is not None and not lopsided:
                assert "its input is real" not in layer.reason, layer
            if layer.status == "packed":
                assert ": " in layer.reason, layer  # says what keeps it from giving bits alone


@pytest.mark.parametrize("seed", FUSED_SEEDS)
def test_predictions_are_equal_unless_an_activation_flipped(seed):
    model, x = drawn(seed).model, drawn(seed).input
    fast = bnn_ext.convert(model, x, verify=False)
    for input in (x, another_batch(x)):
        found = bnn_ext.verify(model, fast, input)
        # Without a flip only logits that lie within rounding of each other may change places.
        rounding = found.largest_difference < 1e-4
        assert found.different_predictions == 0 or found.flips or rounding, (seed, str(found))
        if not fast.rounds:
            assert found.equal, (seed, str(found))
    assert_binary_layers_run_on_bits(model, fast)


def test_random_graphs_cover_what_they_should():
    """The tests above are worth something only if these things occur."""
    seen: dict[str, int] = {}

    def note(**facts: bool) -> None:
        for name, holds in facts.items():
            seen[name] = seen.get(name, 0) + bool(holds)

    for seed in FUSED_SEEDS:
        model, x = drawn(seed).model, drawn(seed).input
        fast = bnn_ext.convert(model, x, verify=False)
        note(channels_last=is_channels_last(x), heads=len(model.outputs) > 1)
        note(map_output=any(output.dim() == 4 for output in model(x.clone())))
        for layer in fast.report.layers:
            note(**{f"{layer.kind} {layer.status}": True})
        for step in fast.steps:
            note(
                select=isinstance(step, SelectChannels),
                elementwise=isinstance(step, Elementwise),
                bits=isinstance(step, (PackedConv2d, PackedLinear)) and step.threshold is not None,
                fused=isinstance(step, (FusedConv2d, FusedLinear)),
            )
            if isinstance(step, FusedConv2d):
                note(residual=step.residuals > 0)
                note(both=step.floats and step.threshold is not None)
                note(grouped=step.groups > 1, dilated=step.dilation != (1, 1))
    required = [f"{kind} fused" for kind in ("BinaryConv2d", "BinaryLinear", "BatchNorm2d", "Add")]
    required += [f"{kind} fused" for kind in ("Concat", "Part", "PReLU", "Hardtanh", "Flatten")]
    required += [f"{kind} packed" for kind in ("BinaryConv2d", "BinaryLinear")]
    required += [f"{kind} left" for kind in ("Conv2d", "Linear", "GELU", "AvgPool2d", "Shuffle")]
    required += ["channels_last", "heads", "map_output", "select", "elementwise", "bits", "fused"]
    required += ["residual", "both", "grouped", "dilated"]
    rare = {name: seen.get(name, 0) for name in required if seen.get(name, 0) < 5}
    assert not rare, rare
