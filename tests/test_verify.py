"""`verify`: what counts as equal, and what it leaves alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from small_models import MAP, two_convs, two_linears
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext.convert import Verification, converter

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
        f"; 0 of {signs.numel():,} activations behind real inputs "
        "fell on the other side of their threshold"
    )
    fast.steps[0].threshold[5:] = float("inf")
    wrong = signs.unflatten(1, (33, -1))[:, 5:] if rows else signs[:, 5:]
    verification = bnn_ext.verify(model, fast, x)
    assert verification.flips == int(wrong.sum()) > 0
    assert not verification.equal


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
