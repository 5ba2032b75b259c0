"""What training shows, writes down and saves while it runs."""

from __future__ import annotations

import csv
import io
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bnn_ext import nn as bnn
from bnn_ext._extras import needs_extra
from bnn_ext.optim import FlipRatio, distance_to_binary
from bnn_ext.training import files
from bnn_ext.training.methods import has_binary_layers

with needs_extra("train"):
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins import TorchCheckpointIO
    from tqdm import tqdm


class EpochLog(Callback):
    """Collects one row per epoch, writes `metrics.csv`, and tells the trainer's loggers.

    A row holds `epoch` (from 1), all values that the module logged, `learning_rate` at the end of
    the epoch, and `seconds` that the epoch took with its validation. If the model has binary
    weights, also `flips`, the fraction of them whose sign is another than an epoch ago, and
    `distance`, the mean of how far the latent weights are from ±1.

    Args:
        folder: of `metrics.csv`, which is there as a whole after every epoch; None writes none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self._folder = folder
        self._start = 0.0
        self._flips: FlipRatio | None = None
        self._resumed: dict[str, Any] | None = None  # state of `_flips` in the middle of an epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()  # of an epoch that goes on in the middle
        if has_binary_layers(pl_module):
            self._flips = FlipRatio(bnn.binary_parameters(pl_module))
            if self._resumed is not None:
                self._flips.load_state_dict(self._resumed)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row |= {name: value.item() for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[-1]["lr"]
        if self._flips is not None:
            row["flips"] = self._flips.update()
            row["distance"] = distance_to_binary(bnn.binary_parameters(pl_module))
        row["seconds"] = time.perf_counter() - self._start
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["epoch"]))
        if self._folder is not None and trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, row.keys())
            writer.writeheader()
            writer.writerows(self.rows)
            files.write(self._folder / "metrics.csv", lambda f: f.write(text.getvalue().encode()))

    def state_dict(self) -> dict[str, Any]:
        flips = None if self._flips is None else self._flips.state_dict()
        return {"rows": self.rows, "flips": flips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._resumed = state_dict["rows"], state_dict["flips"]


class Checkpoints(Callback):
    """Writes `last.ckpt` after every epoch and `best.ckpt` whenever `val_acc` is the best so far.

    On Ctrl-C or SIGTERM the step that runs is finished, `last.ckpt` written, and KeyboardInterrupt
    raised; a second one stops at once, and the file of the last epoch is still there.

    Checkpoints are those of Lightning with `bnn_ext` beside: what `about` says of the training.
    Plain values and tensors only, so `torch.load(..., weights_only=True)` reads them.

    Args:
        folder: of the files.
        about: plain values.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.best: dict[str, float] = {"epoch": 0, "val_acc": -1.0}
        self._folder = folder
        self._about = about
        self._interrupted = False
        self._handlers: dict[int, Any] = {}  # those of before

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._interrupt)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The last batch's epoch is as good as over: it is saved with its validation.
        if batch_idx + 1 < trainer.num_training_batches and self._stop(trainer):
            self._save(trainer, pl_module, "last.ckpt")
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        val_acc = trainer.callback_metrics["val_acc"].item()
        better = val_acc > self.best["val_acc"]
        if better:
            self.best = {"epoch": trainer.current_epoch + 1, "val_acc": val_acc}
        self._save(trainer, pl_module, "last.ckpt")
        if better:
            self._save(trainer, pl_module, "best.ckpt")
        if self._stop(trainer):
            raise KeyboardInterrupt

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["bnn_ext"] = {"format": files.FORMAT, **self._about}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def _stop(self, trainer: L.Trainer) -> bool:
        """Whether any process was interrupted: all have to stop at the same step."""
        return trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)

    def _save(self, trainer: L.Trainer, module: L.LightningModule, name: str) -> None:
        for parameter, value in module.named_parameters():
            if not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"{parameter} is no longer finite after step {trainer.global_step} "
                    f"(epoch {trainer.current_epoch + 1})"
                )
        trainer.save_checkpoint(self._folder / name)


class WholeFiles(TorchCheckpointIO):
    """How Lightning writes checkpoints: as a whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        files.write(Path(path), lambda file: torch.save(checkpoint, file))


class TrainingBar(Callback):
    """One progress bar over the whole training, with the newest loss and accuracies beside it.

    Args:
        print_freq: number of steps after which the loss of a step is shown; None shows those of
            epochs only.
    """

    def __init__(self, print_freq: int | None = None) -> None:
        self._print_freq = print_freq
        self._bar = tqdm(disable=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            desc=_epoch(trainer),
            file=sys.stdout,
            disable=not trainer.is_global_zero,
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
        if self._print_freq is not None and (batch_idx + 1) % self._print_freq == 0:
            loss = outputs["loss"].item()
            self._bar.set_postfix_str(
                f"step {batch_idx + 1}/{trainer.num_training_batches}, loss {loss:.3f}",
                refresh=False,
            )
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
