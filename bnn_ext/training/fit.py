"""Runs a training with Lightning, with one progress bar, one log and no other noise."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bnn_ext._extras import needs_extra
from bnn_ext.training.callbacks import EpochLog, TrainingBar, WholeFiles
from bnn_ext.training.classifier import Classifier
from bnn_ext.training.settings import PRECISIONS

with needs_extra("train"):
    import lightning as L
    from lightning.pytorch.callbacks import Callback


def fit(
    classifier: Classifier,
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    epochs: int,
    log_dir: Path | None = None,
    gpu: int | None = None,
    precision: str = "32",
    print_freq: int | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Any] = (),
    resume: Path | None = None,
) -> list[dict[str, float]]:
    """Trains `classifier` in place, on the GPU if there is one, and leaves it on the CPU.

    Under `torchrun` all its processes train together, each on its share of every batch.

    Args:
        classifier: the model and how to train it.
        train: shuffled batches of images and labels.
        val: batches to measure loss and accuracy with after each epoch.
        epochs: passes over `train`, with those before `resume`.
        log_dir: where `metrics.csv` is written, one row per epoch; None writes none.
        gpu: number of the GPU to train on; -1 for the CPU, None for the first GPU if there is one.
            Each process of torchrun takes its own instead.
        precision: "32", "bf16" or "16", of the float parts.
        print_freq: number of steps after which the progress bar shows the loss of a step.
        callbacks: more of Lightning's.
        loggers: more of Lightning's, which get each row of the log.
        resume: a checkpoint to go on from.

    Returns:
        The same rows as in `metrics.csv`, see `EpochLog`.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        FloatingPointError: the loss is not finite, with the step; or a parameter.
    """
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
    log = EpochLog(log_dir)
    with _quiet():
        trainer = L.Trainer(
            **_devices(gpu),
            precision=PRECISIONS[precision],  # type: ignore[arg-type]
            max_epochs=epochs,
            callbacks=[log, *callbacks, TrainingBar(print_freq)],
            plugins=[WholeFiles()],
            logger=list(loggers),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # loaders know their share
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # `TrainingBar` instead
        )
        try:
            trainer.fit(classifier, train, val, ckpt_path=resume, weights_only=True)
        except SystemExit:
            # Lightning ignores further Ctrl-C from here on and exits; leave that to the caller.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    return log.rows


def _devices(gpu: int | None) -> dict[str, Any]:
    """Where the trainer runs."""
    on_gpu = torch.cuda.is_available() and gpu != -1
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:  # torchrun has started them
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return {
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": local,
            "num_nodes": processes // local,
            "strategy": "ddp",
            "sync_batchnorm": on_gpu,  # torch has none for CPUs
        }
    if gpu == -1:
        return {"accelerator": "cpu", "devices": 1}
    return {"accelerator": "auto", "devices": 1 if gpu is None else [gpu]}


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
            # Lightning's own use of functions that newer releases of torch replace.
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
            yield
    finally:
        logger.setLevel(level)
