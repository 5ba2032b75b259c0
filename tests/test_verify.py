"""`verify`: what counts as equal, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import NETWORKS, randomize
from small_models import MAP, two_convs, two_linears
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork, Verification, converter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_is_optional():
    model = two_linears()
    x = torch.randn(3, 20)
    assert bnn_ext.convert(model, x).report.verification.equal
    assert bnn_ext.convert(model, x, verify=False).report.verification is None
    assert bnn_ext.convert(model).report.verification is None


class Fixed(nn.Module):
    """Gives the same output whatever it gets."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.output = torch.tensor(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def test_counts():
    """A NaN equals a NaN; -0.0 does not equal 0.0."""
    nan = float("nan")
    first = Fixed([1.0, 2.0, 3.0], [nan, 0.0, 1.0], [5.0, 4.0, 3.0])
    second = Fixed([1.0, 2.5, 3.0], [nan, -0.0, 1.0], [5.0, 4.0, 7.0])
    verification = bnn_ext.verify(first, second, torch.zeros(3))
    assert not verification.equal
    assert (verification.elements, verification.different) == (9, 3)
    assert verification.largest_difference == 4
    assert (verification.predictions, verification.different_predictions) == (3, 1)
    assert str(verification) == (
        "verified: 3 of 9 outputs differ, by 4 at most; 2 of 3 predictions are the same"
    )
    same = bnn_ext.verify(first, first, torch.zeros(3))
    assert same.equal
    assert str(same).startswith("verified: all 9 outputs are equal, bit for bit; 3 of 3")


def test_of_maps_has_no_predictions():
    model = two_convs()
    verification = bnn_ext.verify(model, bnn_ext.convert(model), torch.randn(MAP))
    assert verification.equal
    assert verification.predictions == 0
    assert verification.elements == 2 * 5 * 8 * 9


@pytest.mark.parametrize("between", [(), (nn.MaxPool2d(2), nn.Flatten())])
def test_flips(between):
    """Activations behind a real input, in the order of the original."""
    first = bnn.BinaryConv2d(3, 33, 3, input_quantizer=None)
    rows = bool(between)
    last = bnn.BinaryLinear(33 * 25, 4) if rows else bnn.BinaryConv2d(33, 4, 3)
    model = nn.Sequential(first, nn.BatchNorm2d(33), *between, last).eval()
    model[0].bias.data.round_()
    x = torch.randint(-9, 9, MAP).float()  # exact sums in any order
    fast = bnn_ext.convert(model, x)
    verification = fast.report.verification
    with torch.no_grad():
        signs = model[:-1](x) >= 0
    assert verification.equal
    assert (verification.activations, verification.flips) == (signs.numel(), 0)
    assert str(verification).endswith(
        f"; 0 of {signs.numel():,} activations fell on the other side of their threshold"
    )
    fast.steps[0].threshold[5:] = float("inf")
    wrong = signs.unflatten(1, (33, -1))[:, 5:] if rows else signs[:, 5:]
    verification = bnn_ext.verify(model, fast, x)
    assert verification.flips == int(wrong.sum()) > 0
    assert not verification.equal


# --- layer by layer -------------------------------------------------------------------------------


def damaged(fast: PackedNetwork, name: str, buffer: str) -> PackedNetwork:
    """A copy with other weights or thresholds in one step."""
    fast = copy.deepcopy(fast)
    (node,) = (node for node in fast.nodes if node.name == name)
    tensor = getattr(node.module, buffer)
    if tensor.dtype == torch.int32 and buffer == "weight":
        tensor ^= 1  # the first channel of each word
    else:
        tensor += 1
    fast.load_state_dict(fast.state_dict())  # what follows from weights follows again
    return fast


@pytest.fixture(scope="module")
def converted() -> dict[str, tuple[nn.Module, PackedNetwork, tuple[Tensor, ...]]]:
    """A residual network and one with two inputs and outputs."""
    found = {}
    for name in ("binarynet_old_resnet", "two_heads"):
        network, inputs = NETWORKS[name], NETWORKS[name].inputs(3, seed=2)
        model = randomize(network.make(), network.inputs(8), seed=1)
        found[name] = model, bnn_ext.convert(model, inputs, real_layers="torch"), inputs
    return found


@pytest.mark.parametrize(
    ("network", "name", "buffer", "first"),
    [
        ("binarynet_old_resnet", "conv1", "weight", "conv1"),
        ("binarynet_old_resnet", "layer1.0.conv1", "threshold", "layer1.0.conv1"),
        ("binarynet_old_resnet", "layer2.0.conv2", "weight", "layer2.0.conv2"),  # a branch
        ("binarynet_old_resnet", "layer2.0.conv2", "operand_0", "layer2.0.conv2"),
        ("binarynet_old_resnet", "layer2.0.downsample.0", "weight", "layer2.0.downsample.0"),
        ("binarynet_old_resnet", "fc", "weight", "fc"),
        ("two_heads", "trunk.0", "weight", "trunk.0"),
        ("two_heads", "trunk.3", "threshold", "trunk.4"),  # the model has no signs before the pool
        ("two_heads", "trunk.7", "threshold", "layer.2"),  # has signs where both images meet
        ("two_heads", "shift", "operand_0", "shift"),
    ],
)
def test_names_the_first_layer_that_differs(converted, network, name, buffer, first):
    model, fast, inputs = converted[network]
    verification = bnn_ext.verify(model, damaged(fast, name, buffer), inputs, layers=True)
    difference = verification.first_difference
    assert difference.name == first
    assert 0 < difference.different <= difference.elements
    assert difference.largest_difference > 0
    kind = "bits" if difference.bits else "values"
    assert (
        f"; the first difference is at {first}: {difference.different:,} of "
        f"{difference.elements:,} {kind}" in str(verification)
    )


def test_layers_of_an_equal_network(converted):
    for model, fast, inputs in converted.values():
        verification = bnn_ext.verify(model, fast, inputs, layers=True)
        assert verification.equal
        assert verification.first_difference is None
        names = [layer.name for layer in verification.layers]
        assert len(names) > len(fast.nodes) / 2
        assert names == sorted(names, key=[o for n in fast.nodes for o in n.outputs].index)
        assert {layer.bits for layer in verification.layers} == {False, True}
        assert "first difference" not in str(verification)
        assert bnn_ext.verify(model, fast, inputs).layers == []


def test_layers_of_a_network_without_origins(converted):
    model, fast, inputs = converted["two_heads"]
    for other in (model, PackedNetwork(fast.nodes, fast.inputs, fast.structure, fast.report)):
        with pytest.raises(ValueError, match="layers=True needs a network that knows where"):
            bnn_ext.verify(model, other, inputs, layers=True)


def test_rounding_alone_does_not_warn():
    """Where it is allowed: a layer by our kernels that gives floats."""
    torch.manual_seed(0)
    model = bnn.BinaryLinear(2000, 10, input_quantizer=None).eval()
    x = torch.randn(50, 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verification = bnn_ext.convert(model, x).report.verification
    assert not verification.equal and verification.different_predictions == 0
    assert bnn_ext.convert(model, x, real_layers="torch").report.verification.equal


def test_different_predictions_warn(monkeypatch):
    """Also where rounding is allowed."""
    model = bnn.BinaryLinear(20, 10, input_quantizer=None).eval()
    wrong = Verification(30, 1, 0.1, predictions=3, different_predictions=1)
    monkeypatch.setattr(converter, "run_verify", lambda *_: wrong)
    with pytest.warns(UserWarning, match="not equal: .* 2 of 3 predictions are the same"):
        bnn_ext.convert(model, torch.randn(3, 20))


def test_of_an_empty_batch():
    for model, x in ((two_linears(), torch.randn(0, 20)), (two_convs(), torch.randn(0, 3, 9, 9))):
        assert bnn_ext.convert(model, x).report.verification.equal


def test_refuses_other_shapes():
    with pytest.raises(
        ValueError, match=r"fast must give outputs of shape \(1, 2\).*found \(1, 1\)"
    ):
        bnn_ext.verify(Fixed([1.0, 2.0]), Fixed([1.0]), torch.zeros(1))


def test_keeps_modes():
    model = two_linears(nn.BatchNorm1d(33), nn.Dropout(0.5))
    fast = bnn_ext.convert(model)
    model[1].train()
    model[2].train()
    x = torch.randn(3, 20)
    before = model[1].running_mean.clone()
    assert bnn_ext.verify(model, fast, x).equal
    assert [m.training for m in model.modules()] == [False, False, True, True, False]
    assert torch.equal(model[1].running_mean, before)


def test_difference_warns():
    class Forgetful(nn.Module):
        """Not a function of its input alone."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Forgetful.calls += 1
            return x + self.calls

    model = nn.Sequential(bnn.BinaryLinear(20, 4), Forgetful()).eval()
    with pytest.warns(UserWarning, match="the converted network is not equal: verified: 12 of 12"):
        fast = bnn_ext.convert(model, torch.randn(3, 20))
    assert not fast.report.verification.equal
