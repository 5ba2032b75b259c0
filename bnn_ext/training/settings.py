"""Everything that decides what a training does, as plain values that fit in a file."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from bnn_ext import data, models
from bnn_ext.data import ImageData
from bnn_ext.losses import hinge_loss, squared_hinge_loss
from bnn_ext.optim import Regime
from bnn_ext.training.methods import METHODS, require_one_of

OPTIMIZERS = (
    "SGD", "ASGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop"
)  # fmt: skip
_FUSED = ("SGD", "Adam", "AdamW")  # of torch on any device
SCHEDULES = ("constant", "linear", "cosine", "exponential")
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
TEST_WEIGHTS = ("binary", "real")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "hinge": hinge_loss,
    "squared_hinge": squared_hinge_loss,
}

# What these were made for; images of other data sets are scaled.
_INPUT_SIZES = {"alexnet": 224, "alexnet_binary": 224}


@dataclass(frozen=True)
class Optimization:
    """How weights are updated.

    Attributes:
        loss: one of `LOSSES`.
        label_smoothing: part of a label that all classes share in training, of cross_entropy alone.
        method: one of `bnn_ext.training.methods.METHODS`: what happens to the binary weights.
        method_config: settings of the method, see there.
        optimizer: of torch.optim, one of `OPTIMIZERS`.
        lr: learning rate at the start.
        momentum: of the optimizers that have one.
        weight_decay: of all parameters.
        schedule: one of `SCHEDULES`: the way of the learning rate from `lr` to `final_lr`, in a
            small move after every step.
        final_lr: the learning rate in the end; not used by `constant`.
        regime: changes of the optimizer and its settings from an epoch on, counted from 0:
            `{40: {"lr": 1e-3}}`, see `bnn_ext.optim.Regime`. It takes the place of the schedule.
        test_weights: "binary", or "real" to measure accuracy with the latent weights.
    """

    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    method: str = "bnn"
    method_config: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "Adam"
    lr: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    final_lr: float = 0.0
    regime: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    test_weights: str = "binary"

    def __post_init__(self) -> None:
        require_one_of(LOSSES, loss=self.loss)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), found {self.label_smoothing}")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(f"label_smoothing is for loss cross_entropy, found loss {self.loss}")
        require_one_of(METHODS, method=self.method)
        require_one_of(
            METHODS[self.method].settings,
            **{f"setting of method {self.method}": name for name in self.method_config},
        )
        require_one_of(OPTIMIZERS, optimizer=self.optimizer)
        require_one_of(SCHEDULES, schedule=self.schedule)
        require_one_of(TEST_WEIGHTS, test_weights=self.test_weights)
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if self.schedule == "exponential" and not self.final_lr > 0:
            raise ValueError(
                f"final_lr must be positive for the exponential schedule, found {self.final_lr}"
            )
        if not isinstance(self.regime, Mapping):
            raise ValueError(f"regime must map epochs to settings, found {self.regime!r}")
        if self.regime:
            self.whole_regime()

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch to train with; accuracy is measured beside `LOSSES[loss]`."""
        if self.label_smoothing:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return LOSSES[self.loss](logits, labels)

    def whole_regime(self) -> Regime:
        """The regime, beginning with the other settings.

        Raises:
            ValueError: it is not valid.
        """
        first = {"optimizer": self.optimizer, **self.optimizer_settings()}
        # JSON and YAML may know epochs as text.
        entries = {int(epoch): entry for epoch, entry in self.regime.items()}
        return Regime({**entries, 0: {**first, **entries.get(0, {})}})

    def optimizer_settings(self) -> dict[str, float]:
        """What the constructor of the optimizer is given."""
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        if self.optimizer in _FUSED:  # all of a step in one pass over memory
            settings["fused"] = True
        known = inspect.signature(getattr(torch.optim, self.optimizer)).parameters
        return {name: value for name, value in settings.items() if name in known}

    def lr_factor(self, progress: float) -> float:
        """The learning rate over that at the start: a function of where it is, with no memory.

        Args:
            progress: the fraction of the whole training that is done.
        """
        end = self.final_lr / self.lr
        if self.schedule == "linear":
            return 1 + (end - 1) * progress
        if self.schedule == "cosine":
            return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "exponential":
            return end**progress
        return 1.0


@dataclass(frozen=True)
class Settings(Optimization):
    """One training, completely.

    Attributes:
        model: one of `bnn_ext.models.names()`.
        model_config: settings of its constructor beyond those that the data set gives.
        dataset: one of `bnn_ext.data.names()`.
        preprocessing: one that `bnn_ext.data.preprocessings` offers; None for its default.
        input_size: height and width that images are scaled to; None for the model's usual one.
        epochs: passes over the training images.
        batch_size: images of a step, over all processes.
        init: a checkpoint, or a run's folder, whose weights the training begins with.
        teachers: such of networks whose answers are the loss to train with, without labels.
        seed: of first weights, order, augmentation, dropout and stochastic signs.
        precision: one of `PRECISIONS`, of the float parts.
    """

    model: str = "digits_cnn"
    model_config: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "digits"
    preprocessing: str | None = None
    input_size: int | None = None
    epochs: int = 10
    batch_size: int = 64
    init: str | None = None
    teachers: Sequence[str] = ()
    seed: int = 0
    precision: str = "32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(models.names(), model=self.model)
        require_one_of(data.names(), dataset=self.dataset)
        require_one_of(PRECISIONS, precision=self.precision)
        if self.preprocessing is not None:
            offered = data.preprocessings(self.dataset)
            require_one_of(offered, **{f"preprocessing of {self.dataset}": self.preprocessing})
        for name, smallest in (("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, found {value!r}")
        if not isinstance(self.model_config, Mapping):
            raise ValueError(
                f"model_config must map settings to values, found {self.model_config!r}"
            )

    @property
    def image_size(self) -> int | None:
        """Height and width that images are scaled to, None where they stay as they are."""
        return self.input_size or _INPUT_SIZES.get(self.model)

    def make_model(self, num_classes: int, image: tuple[int, int, int]) -> nn.Sequential:
        """The model for images of a shape, with the constructor's settings that follow from it.

        Args:
            num_classes: of the data set.
            image: channels, height and width of an input.

        Raises:
            ValueError: a setting is unknown or refused, or the model does not take such images.
        """
        channels, height, width = image
        follows = {
            "num_classes": num_classes,
            "in_channels": channels,
            "in_features": channels * height * width,
            "input_size": height,
            "layout": "imagenet" if self.dataset == "imagenet" else "cifar",
        }
        known = inspect.signature(getattr(models, self.model)).parameters
        fitting = {name: value for name, value in follows.items() if name in known}
        try:
            model = models.create(self.model, **{**fitting, **self.model_config})
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                logits = model.eval()(torch.zeros(1, *image))
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"model {self.model} does not take {channels}x{height}x{width} images with "
                f"model_config {dict(self.model_config)}: {error}"
            ) from error
        if logits.shape != (1, num_classes):
            raise ValueError(
                f"model {self.model} must give {num_classes} logits for {self.dataset}, found "
                f"shape {tuple(logits.shape)}"
            )
        return model.train()

    def load_data(self, root: str | Path) -> ImageData:
        """Reads the data set."""
        return data.load(self.dataset, root, self.preprocessing)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with some replaced.

        Raises:
            ValueError: a name is unknown, or a value of the wrong kind or refused.
        """
        kinds = {setting.name: setting for setting in dataclasses.fields(self)}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            require_one_of(kinds, setting=name)
            # YAML reads 1e-3 as text, and integers where a real number is meant.
            if "float" in str(kinds[name].type) and isinstance(value, (int, str)):
                try:
                    value = float(value)
                except ValueError:
                    raise ValueError(f"{name} must be a number, found {value!r}") from None
            values[name] = tuple(value) if name == "teachers" else value
        return dataclasses.replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return dataclasses.asdict(self)


def read_config(path: Path) -> dict[str, Any]:
    """Settings in a YAML file, as `config.yaml` of a run holds them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold settings, `name: value`, found {found!r}")
    return found
