"""Whole networks, as people write them and as `bnn_ext.models` makes them: all layers on bits."""

from __future__ import annotations

import functools

import pytest
import torch
from networks import NETWORKS, randomize, train_briefly
from test_networks import LAYERS
from torch import nn

import bnn_ext
from bnn_ext import models
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.fused import FusedConv2d, FusedLinear
from bnn_ext.nn.packed import PackedConv2d, PackedLinear
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.real_inputs import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    RealInputConv2d,
    RealInputLinear,
)
from bnn_ext.nn.torch_calls import TorchCall

ON_BITS = (PackedConv2d, PackedLinear, FusedConv2d, FusedLinear)
BINARY_WEIGHTS = (BinaryWeightConv2d, BinaryWeightLinear, RealInputConv2d, RealInputLinear)

pytestmark = pytest.mark.usefixtures("one_thread")

NATIVE = ("densenet", "shufflenet", "two_heads")  # of this package's layers


def counts(fast: PackedNetwork) -> tuple[int, int, int]:
    """Steps that multiply signs with signs, real values with signs, and real values."""
    bits = sum(isinstance(step, ON_BITS) for step in fast.steps)
    weights = sum(isinstance(step, BINARY_WEIGHTS) for step in fast.steps)
    real = sum(
        isinstance(step, PointwiseConv2d)
        or isinstance(step, TorchCall)
        and step.operator in ("convolution.default", "linear.default")
        for step in fast.steps
    )
    return bits, weights, real


@functools.cache
def prepared(name: str, how: str) -> nn.Module:
    network = NETWORKS[name]
    inputs = network.inputs(16)
    torch.manual_seed(0)
    model = network.make()
    if how == "random":
        return randomize(model, inputs, seed=1)
    train_briefly(model, inputs, torch.arange(16) % network.classes, steps=3)
    return model


@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@pytest.mark.parametrize("how", ["random", "trained"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, how, real_layers):
    model, network = prepared(name, how), NETWORKS[name]
    fast = bnn_ext.convert(model, network.inputs(2, seed=2), verify=False, real_layers=real_layers)
    assert counts(fast) == LAYERS[name], fast.report
    inputs = network.inputs(4, seed=3)
    found = bnn_ext.verify(model, fast, inputs)
    assert found.different_predictions == 0, found
    if real_layers == "torch" and name in NATIVE:
        assert found.equal, found


# Settings that keep the models small, and the shape of their input.
MODELS = {
    "vgg_small_binary": ({"width": 0.25, "hidden": (64, 64)}, (3, 32, 32)),
    "alexnet_binary": ({"inflate": 1, "hidden": 128, "num_classes": 20}, (3, 224, 224)),
    "resnet_binary": ({"inflate": 1}, (3, 32, 32)),
    "birealnet18": ({"width": 0.25, "num_classes": 20}, (3, 64, 64)),
    "reactnet_a": ({"width": 0.25, "num_classes": 20}, (3, 64, 64)),
    "xnor_nin": ({"width": 0.25}, (3, 32, 32)),
    "brn": ({"blocks": 2}, (3, 32, 32)),
    "ebnn_convnet": ({}, (1, 28, 28)),
    "ebnn_alexnet": ({}, (1, 28, 28)),
    "mlp_mnist_binary": ({"hidden": 192}, (1, 28, 28)),
    "binaryconnect_cnn": ({"width": 0.25}, (3, 32, 32)),
}


@functools.cache
def created(name: str) -> nn.Module:
    settings, shape = MODELS[name]
    torch.manual_seed(0)
    model = models.create(name, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # BatchNorm, shifts, scales and slopes
                parameter += 0.3 * torch.randn_like(parameter)
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = None  # the mean of all batches, of which there is one
        model.train()(torch.randn(16, *shape))
    return model.eval()


def binary_layers(model: nn.Module) -> tuple[int, int]:
    """How many layers with binary weights take signs, and how many real values."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, (bnn.BinaryConv2d, bnn.BinaryLinear))
        and module.weight_quantizer is not None
    ]
    bits = sum(layer.input_quantizer is not None for layer in layers)
    return bits, len(layers) - bits


@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_model(name, real_layers):
    model, (_, shape) = created(name), MODELS[name]
    fast = bnn_ext.convert(model, torch.randn(2, *shape), verify=False, real_layers=real_layers)
    assert counts(fast)[:2] == binary_layers(model), fast.report
    left = [line for line in fast.report.layers if line.status == "left"]
    assert not [line for line in left if line.kind.startswith("Binary")], fast.report
    found = bnn_ext.verify(model, fast, torch.randn(4, *shape))
    assert found.different_predictions == 0, found
    if real_layers == "torch":
        assert found.equal, found
