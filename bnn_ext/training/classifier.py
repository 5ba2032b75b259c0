"""What one training step of a binary classifier is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext._extras import needs_extra
from bnn_ext.data import derived_seed
from bnn_ext.losses import DistillationLoss
from bnn_ext.optim import RegimeOptimizer, weights_as
from bnn_ext.training.methods import METHODS, SetEpoch, has_binary_layers
from bnn_ext.training.settings import LOSSES, Optimization

with needs_extra("train"):
    import lightning as L
    from torchmetrics import MeanMetric
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


class Classifier(L.LightningModule):
    """Trains `model`, by default with cross-entropy and Adam, with latent weights in [-1, 1].

    Nothing that a step does depends on how the training came there, but for the tensors that a
    checkpoint holds: the optimizer's settings follow from the step's number, and so does the seed
    of what the model draws.

    Logs `_loss`, `_acc` and `_top5` of `train` and `val` once an epoch; accuracies are fractions.
    The buffer `confusion` counts the validation images of each class (row) by prediction (column).

    Args:
        model: from images to logits `[N, num_classes]`.
        num_classes: number of logits.
        optimization: how to train it.
        teachers: networks whose mean answer is the loss to train with, if there are any.
        seed: of what the model draws while it trains: dropout, stochastic signs.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        optimization: Optimization | None = None,
        *,
        teachers: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimization = optimization or Optimization()
        self.distillation = DistillationLoss(teachers) if teachers else None
        self.seed = seed
        self._set_epoch: SetEpoch | None = None
        self._resumed: dict[str, Tensor] | None = None
        self._weights = ExitStack()  # what accuracy is measured with, while it is
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{name}": metric
                for stage in ("train", "val")
                for name, metric in _metrics(num_classes).items()
            }
        )
        for metric in self._of("train").values():
            metric.persistent(True)  # so that an epoch can go on in the middle
        self._confusion = MulticlassConfusionMatrix(num_classes)
        self.confusion: Tensor
        self.register_buffer("confusion", self._confusion.confmat.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def on_train_start(self) -> None:
        self._begin_epoch()  # which a resumed training may do in the middle

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()
        for metric in self._of("train").values():
            metric.reset()

    def _begin_epoch(self) -> None:
        epoch = self.current_epoch
        (optimizer,) = self.trainer.optimizers
        for part in (optimizer, *getattr(optimizer, "optimizers", ())):
            if isinstance(part, RegimeOptimizer) and part.epoch != epoch:
                part.set_epoch(epoch)
        if self._set_epoch is not None:
            self._set_epoch(epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        epoch = self.current_epoch
        torch.manual_seed(derived_seed("step", self.seed, epoch, batch_idx, self.global_rank))
        if not self.optimization.regime:
            batches = int(self.trainer.num_training_batches)
            progress = (epoch + batch_idx / batches) / (self.trainer.max_epochs or 1)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group["initial_lr"] * self.optimization.lr_factor(progress)

    def on_validation_epoch_start(self) -> None:
        if has_binary_layers(self.model):
            self._weights.enter_context(weights_as(self.model, self.optimization.test_weights))

    def on_validation_epoch_end(self) -> None:
        self._weights.close()
        self.confusion.copy_(self._confusion.compute())
        self._confusion.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        if self.distillation is not None:
            loss = self.distillation(logits, images, labels)
        else:
            loss = self.optimization.training_loss(logits, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} "
                f"(epoch {self.current_epoch + 1}, batch {batch_idx + 1})"
            )
        self._note("train", loss, logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        with bnn.packed_evaluation():
            logits = self(images)
        self._confusion.update(logits, labels)
        self._note("val", LOSSES[self.optimization.loss](logits, labels), logits, labels)

    def _note(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        metrics = self._of(stage)
        metrics[f"{stage}_loss"].update(loss.detach(), len(labels))
        metrics[f"{stage}_acc"].update(logits, labels)
        metrics[f"{stage}_top5"].update(logits, labels)
        # `EpochLog` writes all values of an epoch into one row.
        self.log_dict(metrics, on_step=False, on_epoch=True, logger=False)

    def _of(self, stage: str) -> dict[str, Any]:
        return {name: metric for name, metric in self.metrics.items() if name.startswith(stage)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        how = self.optimization
        if not has_binary_layers(self.model):
            optimizer = self._make_optimizer(self.model.parameters())
        else:
            optimizer, self._set_epoch = METHODS[how.method].start(
                self.model, self._make_optimizer, self.trainer.max_epochs, **how.method_config
            )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if self._resumed is not None:  # some methods prepare weights that begin
            self.load_state_dict(self._resumed)
            self._resumed = None
        return optimizer

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["state_dict"]

    def _make_optimizer(self, params: Any) -> torch.optim.Optimizer:
        how = self.optimization
        params = list(params)
        if how.regime:
            return RegimeOptimizer(params, how.whole_regime())
        make = getattr(torch.optim, how.optimizer)
        optimizer: torch.optim.Optimizer = make(params, **how.optimizer_settings())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1)
        return optimizer


def _metrics(num_classes: int) -> dict[str, Any]:
    return {
        "loss": MeanMetric(),
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
    }
