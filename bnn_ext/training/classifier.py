"""What one training step of a binary classifier is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext._extras import needs_extra

with needs_extra("train"):
    import lightning as L
    from torchmetrics.classification import MulticlassAccuracy


class Classifier(L.LightningModule):
    """Trains `model` with cross-entropy and Adam, keeping its latent weights in [-1, 1].

    The learning rate falls along a half cosine to 0 over the whole training. Logs `train_loss`,
    `train_acc`, `val_loss` and `val_acc` once an epoch; accuracies are fractions.

    Args:
        model: from images to logits `[N, num_classes]`, with at least one binary layer.
        num_classes: number of logits.
        learning_rate: at the start.
    """

    def __init__(self, model: nn.Module, num_classes: int, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch, "train", self.train_accuracy)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._loss(batch, "val", self.val_accuracy)

    def _loss(
        self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy
    ) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_acc": accuracy},
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            logger=False,  # `EpochLog` writes all values of an epoch into one row
        )
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), self.learning_rate)
        bnn.clip_weights(optimizer, self.model, limit=1.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
