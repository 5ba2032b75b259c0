"""Losses of binarized networks: hinges with targets of ±1, and distillation from teachers.

Networks give logits `[N, C]`, targets are class indices `[N]`:

    loss = losses.squared_hinge_loss(model(images), labels)

    distill = losses.DistillationLoss(teacher)             # or several teachers
    loss = distill(model(images), images)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DistillationLoss", "distillation_loss", "hinge_loss", "squared_hinge_loss"]

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "batchmean": lambda terms: terms.sum() / len(terms),
    "sum": torch.sum,
    "none": lambda terms: terms,
}


def hinge_loss(
    logits: Tensor, targets: Tensor, *, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """The mean over samples and classes of `max(0, margin - t * logit)`, t = +1 for the class.

    For all other classes t = -1. The gradient of a term is `-t`, and 0 where `t * logit >= margin`.
    Give it logits: behind a LogSoftmax, which is never positive, no term of the class could vanish.

    Args:
        logits: `[N, C]`.
        targets: class indices `[N]`, int64.
        margin: positive.
        reduction: "mean" (over all N * C terms), "batchmean" (the sum over N), "sum", or "none",
            which gives the terms `[N, C]`.

    Raises:
        ValueError: shapes do not fit, or an argument is out of range.

    Source: `HingeLoss` of itayhubara/BinaryNet.pytorch.
    """
    return _reduce(_margins_missed(logits, targets, margin), reduction)


def squared_hinge_loss(
    logits: Tensor, targets: Tensor, *, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """The mean over samples and classes of `max(0, margin - t * logit)**2`, t = +1 for the class.

    For all other classes t = -1. The gradient of a term is `-2 t max(0, margin - t * logit)`, so
    with "mean" that of the loss is this over N * C.

    Args:
        logits: `[N, C]`.
        targets: class indices `[N]`, int64.
        margin: positive.
        reduction: "mean" (over all N * C terms), "batchmean" (the sum over N, as of one L2-SVM per
            class), "sum", or "none", which gives the terms `[N, C]`.

    Raises:
        ValueError: shapes do not fit, or an argument is out of range.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363), section 3.1, the
    L2-SVM output, in the mean over all terms that its code takes.
    """
    return _reduce(_margins_missed(logits, targets, margin).square(), reduction)


def _margins_missed(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be positive and finite, found {margin}")
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "logits and targets must have shapes [N, C] and [N], found "
            f"{list(logits.shape)} and {list(targets.shape)}"
        )
    signs = 2 * F.one_hot(targets, logits.shape[1]).to(logits.dtype) - 1
    return F.relu(margin - signs * logits)


def _reduce(terms: Tensor, reduction: str) -> Tensor:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, found {reduction!r}")
    return _REDUCTIONS[reduction](terms)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's distribution under the teacher's, the mean over the batch.

    `-T**2 sum_c softmax(teacher / T)_c log_softmax(student / T)_c`; the factor keeps gradients in
    proportion to those of hard labels. No gradient reaches the teacher.

    Args:
        logits: of the student, `[N, C]`.
        teacher_logits: of the teacher, `[N, C]`.
        temperature: T, positive.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
    (arXiv:1503.02531), section 2; at T = 1 the distributional loss of Liu, Shen, Savvides, Cheng,
    "ReActNet", 2020 (arXiv:2003.03488).
    """
    _require_temperature(temperature)
    if logits.dim() != 2 or logits.shape != teacher_logits.shape:
        raise ValueError(
            "logits and teacher_logits must have the same shape [N, C], found "
            f"{list(logits.shape)} and {list(teacher_logits.shape)}"
        )
    target = (teacher_logits.detach() / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(logits / temperature, target)


class DistillationLoss(nn.Module):
    """`distillation_loss` from teachers, which it runs itself on the same images.

        distill = DistillationLoss(teacher)
        loss = distill(model(images), images)              # the teacher's answers alone
        loss = distill(model(images), images, labels)      # mixed with the labels, hard_weight > 0

    The teachers are put in eval mode and stay in it, so that their BatchNorm does not learn from
    the student's batches. They are no submodules: their parameters appear neither in `parameters()`
    nor in the state_dict of whatever holds this loss, but `to` moves them along.

    Args:
        teachers: one model from images to logits, or several, whose logits are averaged.
        temperature: T, positive.
        hard_weight: w in [0, 1]: the loss is `(1 - w) distillation + w cross_entropy(labels)`.

    Raises:
        ValueError: there is no teacher, or a number is out of range.

    Source: "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531), section 2;
    without hard labels, as in "ReActNet", 2020 (arXiv:2003.03488), and in Paren, Poudel, "Training
    Binarized Neural Networks the Easy Way", 2022.
    """

    def __init__(
        self,
        teachers: nn.Module | Sequence[nn.Module],
        *,
        temperature: float = 1.0,
        hard_weight: float = 0.0,
    ) -> None:
        super().__init__()
        _require_temperature(temperature)
        if not 0 <= hard_weight <= 1:
            raise ValueError(f"hard_weight must be in [0, 1], found {hard_weight}")
        # A module would register modules, but not a tuple of them.
        self.teachers = (teachers,) if isinstance(teachers, nn.Module) else tuple(teachers)
        if not self.teachers:
            raise ValueError("teachers must hold at least one model, found none")
        self.temperature = temperature
        self.hard_weight = hard_weight

    def forward(self, logits: Tensor, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """The loss of the student's `logits` `[N, C]` on `inputs`, with class indices `[N]` or not.

        Raises:
            ValueError: shapes do not fit, or `hard_weight` asks for targets and there are none.
        """
        with torch.no_grad():
            answers = [teacher.eval()(inputs) for teacher in self.teachers]
        loss = distillation_loss(logits, torch.stack(answers).mean(0), self.temperature)
        if self.hard_weight == 0:
            return loss
        if targets is None:
            raise ValueError(f"targets must be given at hard_weight {self.hard_weight}, found None")
        return (1 - self.hard_weight) * loss + self.hard_weight * F.cross_entropy(logits, targets)

    def _apply(self, fn: Any, recurse: bool = True) -> DistillationLoss:
        for teacher in self.teachers:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _require_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, found {temperature}")
