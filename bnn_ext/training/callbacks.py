"""What training shows and writes down while it runs."""

from __future__ import annotations

import sys
import time
from typing import Any

from bnn_ext._extras import needs_extra

with needs_extra("train"):
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from tqdm import tqdm


class EpochLog(Callback):
    """Collects one row per epoch, and gives it to the trainer's logger if there is one.

    A row holds `epoch` (from 1), all values that the module logged, `learning_rate` at the end of
    the epoch, and `seconds` that the epoch took with its validation.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row |= {name: value.item() for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = time.perf_counter() - self._start
        self.rows.append(row)
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, step=trainer.current_epoch)


class TrainingBar(Callback):
    """One progress bar over the whole training, with the newest loss and accuracies beside it."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            desc=_epoch(trainer),
            file=sys.stdout,
            dynamic_ncols=True,
            # A log file keeps every state of the bar: show few of them there.
            mininterval=0.1 if sys.stdout.isatty() else 10,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}",
        )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_description_str(_epoch(trainer), refresh=False)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self._bar.set_postfix_str(
            f"loss {metrics['train_loss']:.3f}, train {metrics['train_acc']:.1%}, "
            f"val {metrics['val_acc']:.1%}"
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._bar.close()


def _epoch(trainer: L.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
