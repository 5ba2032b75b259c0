"""Runs a training with Lightning, with one progress bar, one log and no other noise."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from bnn_ext._extras import needs_extra
from bnn_ext.training.callbacks import EpochLog, TrainingBar
from bnn_ext.training.classifier import Classifier

with needs_extra("train"):
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger


def fit(
    classifier: Classifier,
    train: DataLoader[Any],
    val: DataLoader[Any],
    *,
    epochs: int,
    log_dir: Path | None = None,
) -> list[dict[str, float]]:
    """Trains `classifier` in place, on the GPU if there is one, and leaves it on the CPU.

    Args:
        classifier: the model and how to train it.
        train: shuffled batches of images and labels.
        val: batches to measure loss and accuracy with after each epoch.
        epochs: passes over `train`.
        log_dir: where `metrics.csv` is written, one row per epoch; None writes none.

    Returns:
        The same rows, see `EpochLog`.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    log = EpochLog()
    with _quiet():
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=epochs,
            callbacks=[log, TrainingBar()],
            logger=_csv_logger(log_dir) if log_dir is not None else False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # `TrainingBar` instead
        )
        try:
            trainer.fit(classifier, train, val)
        except SystemExit:
            # Lightning ignores further Ctrl-C from here on and exits; leave that to the caller.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    return log.rows


def _csv_logger(folder: Path) -> CSVLogger:
    return CSVLogger(folder.parent, name="", version=folder.name, flush_logs_every_n_steps=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's remarks on hardware, on products, and on choices made here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Batches are slices of tensors in memory: workers would only slow them down.
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            # An earlier log in the same folder is replaced on purpose.
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
            # Lightning's own use of functions that newer releases of torch replace.
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
            yield
    finally:
        logger.setLevel(level)
