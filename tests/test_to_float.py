"""`to_float`: plain torch with the outputs of the converted network."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from networks import NETWORKS, randomize
from random_models import RandomModel
from small_models import MAP, two_convs, two_linears
from small_networks import SMALL, small
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = ("fused", "torch")
# Their layers with real inputs sum values that are no multiples of a power of two.
INEXACT = {"binaryconnect", "binaryconnect_cnn", "binaryconnect_mlp", "nofloatbrn", "norealbrn"}


@torch.no_grad()
def assert_same(fast: PackedNetwork, *inputs: Tensor, exact: bool = True) -> fx.GraphModule:
    """The float network, whose outputs are those of the packed one in structure and value."""
    network = bnn_ext.to_float(fast)
    expected, structure = pytree.tree_flatten(fast(*inputs))
    found, found_structure = pytree.tree_flatten(network(*inputs))
    assert structure == found_structure
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        if exact:
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)  # sums in another order
    return network


@pytest.mark.parametrize("real_layers", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_others(name, real_layers):
    network = NETWORKS[name]
    model = randomize(network.make(), network.inputs(8), seed=1)
    inputs = network.inputs(2, seed=2)
    fast = bnn_ext.convert(model, inputs, real_layers=real_layers, verify=False)
    assert_same(fast, *inputs, exact=real_layers == "torch" or name not in INEXACT)


@pytest.mark.parametrize("real_layers", MODES)
@pytest.mark.parametrize("name", SMALL)
def test_networks_of_this_package(name, real_layers):
    model, images = small(name)
    fast = bnn_ext.convert(model, images, real_layers=real_layers, verify=False)
    assert_same(fast, images, exact=real_layers == "torch" or name not in INEXACT)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed):
    drawn = RandomModel(seed)
    fast = bnn_ext.convert(drawn.model, drawn.input, real_layers="torch", verify=False)
    assert_same(fast, drawn.input)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = two_convs(nn.BatchNorm2d(33)).to(dtype)
    x = torch.randn(MAP).to(dtype)
    assert_same(bnn_ext.convert(model, x, real_layers="torch"), x)


def test_any_batch_and_size():
    model = two_convs(nn.MaxPool2d(2), nn.BatchNorm2d(33))
    network = assert_same(bnn_ext.convert(model, torch.randn(MAP)), torch.randn(MAP))
    x = torch.randn(5, 3, 20, 17)
    assert torch.equal(network(x), model(x))


def test_a_loaded_network(tmp_path):
    model = two_convs(nn.MaxPool2d(2), nn.BatchNorm2d(33), nn.PReLU())
    x = torch.randn(MAP)
    bnn_ext.save(bnn_ext.convert(model, x), tmp_path / "model.bnn")
    assert_same(bnn_ext.load(tmp_path / "model.bnn"), x)


class Contrary(nn.Module):
    """Computes something else for another batch size, so that it cannot be read."""

    def forward(self, x: Tensor) -> Tensor:
        return x + len(x)


def test_a_model_that_was_left():
    x = torch.randn(3, 20)
    fast = bnn_ext.convert(nn.Sequential(nn.Linear(20, 4), Contrary()).eval(), x)
    assert [layer.status for layer in fast.report.layers] == ["left"]
    assert_same(fast, x)


# --- what it is -----------------------------------------------------------------------------------


def test_is_made_of_torch_layers():
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 4, 3, padding=1, pad_value=1, bias=False),
        nn.MaxPool2d(2),
        bnn.BinaryConv2d(4, 6, 3, stride=2, groups=2),
        nn.Conv2d(6, 5, 1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).eval()
    x = torch.randn(2, 3, 9, 9)
    network = assert_same(bnn_ext.convert(model, x), x)
    modules = {name: type(module) for name, module in network.named_children()}
    assert modules == {
        "0_pad": nn.ConstantPad2d,
        "0": nn.Conv2d,
        "1": nn.MaxPool2d,
        "2": nn.Conv2d,
        "3": nn.Linear,  # of pixels, as its sums are made in the converted network
        "5": nn.Linear,
    }
    binary = network.get_submodule("2")
    assert (binary.stride, binary.groups, binary.bias) == ((2, 2), 2, None)
    assert torch.equal(binary.weight, torch.where(model[2].weight >= 0, 1.0, -1.0))
    assert torch.equal(network.get_submodule("5").weight, model[5].weight)
    assert not network.training


def test_knows_nothing_of_this_package():
    fast = bnn_ext.convert(*small("reactnet18"), verify=False)
    assert b"bnn_ext" not in pickle.dumps(bnn_ext.to_float(fast))


def test_shares_no_memory():
    model = two_linears(nn.BatchNorm1d(33), nn.Sigmoid(), nn.Linear(33, 33))
    x = torch.randn(3, 20)
    fast = bnn_ext.convert(model, x, real_layers="torch")
    before = fast(x)
    with torch.no_grad():
        for tensor in bnn_ext.to_float(fast).state_dict().values():
            tensor.fill_(3)
    assert torch.equal(fast(x), before)


def test_real_layers_can_be_trained_on():
    model = nn.Sequential(bnn.BinaryLinear(20, 33), nn.Sigmoid(), nn.Linear(33, 2)).eval()
    x = torch.randn(3, 20)
    network = bnn_ext.to_float(bnn_ext.convert(model, x))
    network(x).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"2.weight", "2.bias"}
    assert all(network.get_parameter(name).grad.abs().sum() > 0 for name in trained)


def test_names_that_modules_have_already():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = bnn.BinaryLinear(20, 4)
            self.code = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.code(self.graph(x))

    x = torch.randn(3, 20)
    network = assert_same(bnn_ext.convert(Model().eval(), x), x)
    assert {name for name, _ in network.named_children()} == {"graph_", "code_"}


def test_refuses_other_models():
    with pytest.raises(TypeError, match="network must be a PackedNetwork, found Sequential"):
        bnn_ext.to_float(nn.Sequential())  # type: ignore[arg-type]


# --- elsewhere ------------------------------------------------------------------------------------


def exported(network: nn.Module, *inputs: Tensor) -> Any:
    """A session of onnxruntime."""
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason=f"torch.onnx.export needs {module}")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs what was exported")
    program = torch.onnx.export(network, inputs, dynamo=True, verbose=False)
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString())


def test_onnx():
    """A network of everything: thresholds of both directions, pools, shortcuts, two outputs."""
    network = NETWORKS["two_heads"]
    model = randomize(network.make(), network.inputs(8), seed=1)
    inputs = network.inputs(4, seed=2)
    fast = bnn_ext.convert(model, inputs)
    session = exported(bnn_ext.to_float(fast), *inputs)
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    classes, shift = map(torch.from_numpy, found)
    expected = fast(*inputs)
    assert torch.equal(classes.argmax(1), expected["classes"].argmax(1))
    torch.testing.assert_close(classes, expected["classes"])  # a real layer is the last
    assert torch.equal(shift, expected["shift"])
