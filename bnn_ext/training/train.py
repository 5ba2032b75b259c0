"""What `bnn-ext train`, `evaluate` and `convert` do, as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import bnn_ext
from bnn_ext import data
from bnn_ext._extras import needs_extra
from bnn_ext.convert import PackedNetwork
from bnn_ext.convert.tables import format_table
from bnn_ext.data import ImageData
from bnn_ext.optim import weights_as
from bnn_ext.training import files
from bnn_ext.training.callbacks import Checkpoints
from bnn_ext.training.classifier import Classifier
from bnn_ext.training.fit import fit
from bnn_ext.training.methods import has_binary_layers, set_quantizers
from bnn_ext.training.settings import LOSSES, Settings

with needs_extra("train"):
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

_EVAL_BATCH = 250  # images that go through a network at once, to need little memory
_EXAMPLES = 16  # images of noise that a conversion is verified on
_SHOWN_CLASSES = 20  # largest confusion matrix that is printed


def train(
    settings: Settings,
    folder: Path,
    *,
    data_root: Path = Path("data"),
    resume: Path | None = None,
    gpu: int | None = None,
    workers: int = 0,
    print_freq: int = 10,
) -> list[dict[str, float]]:
    """Trains a model and writes what came of it.

    Into `folder`: `config.yaml`, the settings; `metrics.csv`, a row per epoch; `last.ckpt` and
    `best.ckpt`; TensorBoard's events if it is installed. The same seed and settings on the same
    kind of machine give the same weights, bit for bit, however often the training was interrupted
    and resumed.

    Args:
        settings: what to do.
        folder: where results go; files of an earlier run there are replaced.
        data_root: where data sets lie, or are downloaded to.
        resume: a checkpoint, or the folder with its `last.ckpt`, to go on from.
        gpu, print_freq: as for `fit`.
        workers: processes that prepare batches of image files.

    Returns:
        The rows of `metrics.csv`, see `EpochLog`.

    Raises:
        ValueError: the data set or model does not fit the settings, or `resume` the model.
        FileNotFoundError: the data set or checkpoint is missing.
        FloatingPointError: the loss is not finite; checkpoints are those of before.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` says where to go on.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    images = settings.load_data(data_root)
    val = images.test if images.val is None else images.val
    shape = _shape(images, settings.image_size)
    share = {"rank": rank, "world_size": world_size, "workers": workers}
    batches = data.Batches(
        images, settings.batch_size, seed=settings.seed, input_size=settings.image_size, **share
    )
    L.seed_everything(settings.seed, verbose=False)
    model = settings.make_model(images.num_classes, shape)
    model.to(memory_format=torch.channels_last)  # PyTorch's convolutions are faster so
    set_quantizers(model, settings.method)
    start = resume or settings.init
    if start is not None:
        start = files.checkpoint_file(Path(start))
        files.load_weights(model, files.read_checkpoint(start), start)
    teachers = [files.model_in(files.checkpoint_file(Path(path))) for path in settings.teachers]

    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        text = yaml.safe_dump(settings.as_dict(), sort_keys=False)
        files.write(folder / "config.yaml", lambda file: file.write(text.encode()))
        _say("data", f"{images.title}: {len(images.train):,} images")  # type: ignore[arg-type]
        _say("model", f"{settings.model}, {sum(p.numel() for p in model.parameters()):,} weights")
        _say("train", f"into {folder}\n")
    about = {
        "settings": settings.as_dict(),
        "num_classes": images.num_classes,
        "image": list(shape),
    }
    checkpoints = Checkpoints(folder, about)
    rows = fit(
        Classifier(model, images.num_classes, settings, teachers=teachers, seed=settings.seed),
        batches,
        data.EvaluationBatches(val, _EVAL_BATCH, input_size=settings.image_size, **share),
        epochs=settings.epochs,
        log_dir=folder,
        gpu=gpu,
        precision=settings.precision,
        print_freq=print_freq,
        callbacks=[checkpoints],
        loggers=[TensorBoardLogger(folder, name="", version="")]
        if find_spec("tensorboard")
        else [],
        resume=None if resume is None else start,
    )
    if rank == 0:
        best = checkpoints.best
        print()
        _say("best", f"epoch {best['epoch']}, {best['val_acc']:.2%} of the validation images")
        if images.val is not None:  # which chose the epoch, so others have to judge it
            _say("test", str(evaluate(folder / "best.ckpt", data_root=data_root)))
    return rows


@dataclass(frozen=True)
class Evaluation:
    """How a network does on images that it has not seen.

    Attributes:
        loss: mean over the images.
        top1, top5: fractions of the images whose class is the likeliest, or one of the five.
        confusion: images of class i that were taken for class j, int64 `[C, C]`.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor

    def __str__(self) -> str:
        count = int(self.confusion.sum())
        return (
            f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f} ({count:,} images)"
        )

    def confusion_table(self) -> str:
        """The confusion matrix, or for many classes its largest entries off the diagonal."""
        classes = len(self.confusion)
        if classes <= _SHOWN_CLASSES:
            rows = [[str(i), *map(str, row)] for i, row in enumerate(self.confusion.tolist())]
            header = ["class", *map(str, range(classes))]
            return format_table(header, rows, right=range(classes + 1))
        wrong = self.confusion.clone().fill_diagonal_(0).flatten()
        top = wrong.topk(_SHOWN_CLASSES)
        rows = [
            [str(index // classes), str(index % classes), str(count)]
            for count, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        return format_table(["class", "taken for", "images"], rows, right=(0, 1, 2))


@torch.inference_mode()
def measure(model: nn.Module, batches: Any, num_classes: int, loss: str) -> Evaluation:
    """Runs a network over batches, on the CPU.

    Args:
        model: from images to logits `[N, num_classes]`, in eval mode.
        batches: of images and labels.
        num_classes: number of logits.
        loss: one of `bnn_ext.training.settings.LOSSES`.
    """
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    total_loss, top5 = 0.0, 0
    for images, labels in batches:
        logits = model(images)
        total_loss += LOSSES[loss](logits, labels).item() * len(labels)
        pairs = labels * num_classes + logits.argmax(1)
        confusion += pairs.bincount(minlength=num_classes**2).view(confusion.shape)
        best = logits.topk(min(5, num_classes)).indices
        top5 += int((best == labels[:, None]).sum())
    count = int(confusion.sum())
    return Evaluation(
        total_loss / count, int(confusion.diagonal().sum()) / count, top5 / count, confusion
    )


def evaluate(
    path: Path,
    *,
    data_root: Path = Path("data"),
    changes: dict[str, Any] | None = None,
    workers: int = 0,
) -> Evaluation:
    """Measures a checkpoint or a converted network on the test images.

    Args:
        path: a checkpoint of `train`, a run's folder (its last checkpoint), or a `.bnn` file.
        data_root: where data sets lie, or are downloaded to.
        changes: settings that differ from the checkpoint's: `dataset`, `preprocessing`,
            `input_size`, `loss`. A converted network has none of its own: it needs `dataset`, and
            the others where they are not the defaults.
        workers: processes that prepare batches of image files.

    Raises:
        FileNotFoundError: the file or the data set is missing.
        ValueError: it is neither a checkpoint nor a converted network, or does not fit the images.
    """
    path = files.checkpoint_file(path)
    network: nn.Module
    if path.suffix == ".bnn":
        network = bnn_ext.load(path)
        if "dataset" not in (changes or {}):
            raise ValueError(f"dataset must be given: {path} does not say which it was trained on")
        settings = Settings().changed(changes or {})
    else:
        network = files.model_in(path).to(memory_format=torch.channels_last)
        settings = files.settings_in(files.read_checkpoint(path)).changed(changes or {})
    images = settings.load_data(data_root)
    batches = data.EvaluationBatches(
        images.test, _EVAL_BATCH, input_size=settings.image_size, workers=workers
    )
    _require_fit(network, _shape(images, settings.image_size), images.num_classes, path)
    binary = has_binary_layers(network)
    with weights_as(network, settings.test_weights) if binary else nullcontext():
        return measure(network, batches, images.num_classes, settings.loss)


def convert(path: Path, output: Path, *, real_layers: str = "torch") -> PackedNetwork:
    """Converts a checkpoint to packed bits and saves that.

    Args:
        path: a checkpoint of `train`, or a run's folder.
        output: the `.bnn` file.
        real_layers: as for `bnn_ext.convert`; "torch" makes all predictions equal.

    Returns:
        The converted network.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is none, or `output` has another suffix than `.bnn`.
    """
    if output.suffix != ".bnn":
        raise ValueError(f"output must end in .bnn, found {output}")
    path = files.checkpoint_file(path)
    model = files.model_in(path).to(memory_format=torch.channels_last)
    image = files.read_checkpoint(path)["bnn_ext"]["image"]
    example = torch.randn(_EXAMPLES, *image, generator=torch.Generator().manual_seed(0))
    fast = bnn_ext.convert(model, example, real_layers=real_layers)
    bnn_ext.save(fast, output)
    return fast


def _shape(images: ImageData, size: int | None) -> tuple[int, int, int]:
    """Channels, height and width of an input."""
    first, _ = images.test[torch.tensor([0])]
    channels, height, width = first.shape[1:]
    return (channels, size or height, size or width)


def _require_fit(
    network: nn.Module, image: tuple[int, int, int], num_classes: int, path: Path
) -> None:
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(1, *image))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} does not take {_times(image)} images (input_size scales them): {error}"
        ) from error
    if logits.shape != (1, num_classes):
        raise ValueError(
            f"{path} must give {num_classes} logits an image, found shape {tuple(logits.shape)}"
        )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _say(step: str, text: str) -> None:
    print(f"{step:<9}{text}", flush=True)
