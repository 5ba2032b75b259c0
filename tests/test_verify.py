"""`verify`: what counts as equal, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from small_models import MAP, two_convs, two_linears
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn

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
