"""Losses and their gradients against the published formulas, and the teachers of distillation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bnn_ext.losses import DistillationLoss, distillation_loss, hinge_loss, squared_hinge_loss

E = 2.0**-7


def logits_around_the_margin() -> tuple[torch.Tensor, torch.Tensor]:
    """Every class of three with logits at, below and above the margins 1 and -1 and at 0."""
    values = [-2.0, -1 - E, -1.0, -1 + E, -E, 0.0, E, 1 - E, 1.0, 1 + E, 2.0]
    logits = torch.tensor([values, values[::-1], values], dtype=torch.float64).T.contiguous()
    return logits, torch.arange(len(values)) % 3


def terms(
    logits: torch.Tensor, targets: torch.Tensor, margin: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    signs = np.full(logits.shape, -1.0)
    signs[np.arange(len(targets)), targets] = 1
    return np.maximum(0, margin - signs * logits.detach().numpy()), signs


def gradient(loss, logits: torch.Tensor, targets: torch.Tensor, **settings) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, targets, **settings).backward()
    return logits.grad


# All values are short binary fractions and sums exact; a mean over 33 is rounded once, and so is
# the factor 1 / 33 of its gradient, which is then multiplied: 2 roundings.
EXACT = {"rtol": 4e-16, "atol": 0}


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_hinge(margin):
    logits, targets = logits_around_the_margin()
    missed, signs = terms(logits, targets, margin)
    loss = hinge_loss(logits, targets, margin=margin)
    torch.testing.assert_close(loss.item(), missed.mean(), **EXACT)
    expected = torch.tensor(np.where(missed > 0, -signs, 0) / missed.size)
    torch.testing.assert_close(
        gradient(hinge_loss, logits, targets, margin=margin), expected, **EXACT
    )


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_squared_hinge(margin):
    logits, targets = logits_around_the_margin()
    missed, signs = terms(logits, targets, margin)
    loss = squared_hinge_loss(logits, targets, margin=margin)
    torch.testing.assert_close(loss.item(), (missed**2).sum() / missed.size, **EXACT)
    expected = torch.tensor(-2 * signs * missed / missed.size)
    grad = gradient(squared_hinge_loss, logits, targets, margin=margin)
    torch.testing.assert_close(grad, expected, **EXACT)


@pytest.mark.parametrize("loss", [hinge_loss, squared_hinge_loss])
def test_reductions(loss):
    logits, targets = logits_around_the_margin()
    each = loss(logits, targets, reduction="none")
    assert each.shape == logits.shape
    assert torch.equal(loss(logits, targets, reduction="sum"), each.sum())
    assert torch.equal(loss(logits, targets, reduction="batchmean"), each.sum() / len(targets))
    assert torch.equal(loss(logits, targets, reduction="mean"), each.mean())
    with pytest.raises(ValueError, match="reduction must be one of mean, .*found 'average'"):
        loss(logits, targets, reduction="average")
    with pytest.raises(ValueError, match=r"\[N, C\] and \[N\], found \[11, 3\] and \[10\]"):
        loss(logits, targets[:-1])
    with pytest.raises(ValueError, match="margin must be positive and finite, found 0"):
        loss(logits, targets, margin=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature):
    student = torch.randn(5, 4, dtype=torch.float64)
    teacher = 3 * torch.randn(5, 4, dtype=torch.float64)

    def softmax(x):
        e = np.exp(x / temperature)
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher.numpy()), softmax(student.numpy())
    expected = -(temperature**2) * (p * np.log(q)).sum(1).mean()
    # A few dozen float64 operations on either side.
    loss = distillation_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-13)
    leaf, source = student.requires_grad_(), teacher.requires_grad_()
    distillation_loss(leaf, source, temperature).backward()
    expected = torch.tensor(temperature * (q - p) / 5)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-15)
    assert source.grad is None


def test_distillation_from_teachers():
    torch.manual_seed(0)
    teachers = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    student, x, labels = torch.randn(6, 4), torch.randn(6, 3), torch.randint(0, 4, (6,))
    before = [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher in teachers]
    loss = DistillationLoss(teachers, temperature=2.0, hard_weight=0.25)
    found = loss.train()(student, x, labels)
    mean = (teachers[0](x) + teachers[1](x)) / 2
    soft = distillation_loss(student, mean, 2.0)
    hard = nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(found, 0.75 * soft + 0.25 * hard)
    for teacher, state in zip(teachers, before, strict=True):
        assert not teacher.training
        assert all(torch.equal(state[k], v) for k, v in teacher.state_dict().items())

    assert not list(loss.parameters()) and not loss.state_dict()
    assert teachers[0][0].weight.dtype == torch.float32
    loss.double()
    assert teachers[0][0].weight.dtype == teachers[1][1].running_mean.dtype == torch.float64


def test_distillation_errors():
    teacher = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="teachers must hold at least one"):
        DistillationLoss([])
    for temperature in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive and finite, found"):
            DistillationLoss(teacher, temperature=temperature)
    with pytest.raises(ValueError, match=r"hard_weight must be in \[0, 1\], found 2"):
        DistillationLoss(teacher, hard_weight=2)
    with pytest.raises(ValueError, match="targets must be given at hard_weight 0.5, found None"):
        DistillationLoss(teacher, hard_weight=0.5)(torch.ones(2, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"same shape \[N, C\], found \[2, 5\] and \[2, 4\]"):
        DistillationLoss(teacher)(torch.ones(2, 5), torch.ones(2, 3))
