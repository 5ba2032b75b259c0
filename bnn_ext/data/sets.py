"""All data sets by name, with the preprocessing of published experiments by name.

images = data.load("cifar10", "data", "zca")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bnn_ext._extras import needs_extra
from bnn_ext.data.digits import digits
from bnn_ext.data.images import ImageData
from bnn_ext.data.preprocessing import PREPROCESSINGS, Preprocessing

_Part = tuple[Tensor, Tensor]  # pixels, uint8 [N, C, H, W]; labels, int64 [N]


@dataclass(frozen=True)
class _Source:
    """A data set that torchvision reads and downloads.

    Attributes:
        title: for people.
        cls: name of the class in torchvision.datasets.
        folder: where the files lie in the data root.
        channels, size, num_classes: of the images.
        preprocessing: the default.
    """

    title: str
    cls: str
    folder: str
    channels: int
    size: int
    num_classes: int
    preprocessing: str


_SOURCES = {
    "mnist": _Source("MNIST handwritten digits", "MNIST", "MNIST/raw", 1, 28, 10, "power_of_two"),
    "fashion_mnist": _Source(
        "Fashion-MNIST clothes", "FashionMNIST", "FashionMNIST/raw", 1, 28, 10, "power_of_two"
    ),
    "cifar10": _Source(
        "CIFAR-10", "CIFAR10", "cifar-10-batches-py", 3, 32, 10, "imagenet_statistics"
    ),
    "cifar100": _Source(
        "CIFAR-100", "CIFAR100", "cifar-100-python", 3, 32, 100, "imagenet_statistics"
    ),
}


def names() -> list[str]:
    """The data sets that `load` knows."""
    return ["digits", *_SOURCES, "imagenet"]


def preprocessings(dataset: str) -> list[str]:
    """The preprocessings that `load` offers for a data set, the default first.

    Raises:
        ValueError: no data set has this name.
    """
    _check_name(dataset)
    if dataset == "digits":
        return ["power_of_two"]
    if dataset == "imagenet":
        return ["imagenet_statistics"]
    source = _SOURCES[dataset]
    fitting = [
        name
        for name, preprocessing in PREPROCESSINGS.items()
        if preprocessing.channels in (None, source.channels) and name != source.preprocessing
    ]
    return [source.preprocessing, *fitting]


def load(dataset: str, root: str | Path = "data", preprocessing: str | None = None) -> ImageData:
    """Reads a data set, downloaded by torchvision if it is missing and there is a network.

    Args:
        dataset: one of `names()`. `digits` comes with scikit-learn; `imagenet` is read from the
            folders `ImageNet/train` and `ImageNet/val`, which hold a folder for each class.
        root: the folder that holds the data sets' own folders.
        preprocessing: one of `preprocessings(dataset)`, None for its default; see
            `bnn_ext.data.preprocessing`.

    Raises:
        ValueError: no data set or preprocessing has this name.
        FileNotFoundError: the files are missing and could not be downloaded.
        ModuleNotFoundError: torchvision (or, for digits, scikit-learn) is not installed.
    """
    known = preprocessings(dataset)
    if preprocessing is None:
        preprocessing = known[0]
    if preprocessing not in known:
        raise ValueError(
            f"preprocessing of {dataset} must be one of {', '.join(known)}, found {preprocessing!r}"
        )
    root = Path(root)
    if dataset == "digits":
        return digits()
    if dataset == "imagenet":
        from bnn_ext.data.folder import imagenet

        return imagenet(root)
    source = _SOURCES[dataset]
    train, test = (_read(source, root, part) for part in (True, False))
    return _prepared(source, train, test, PREPROCESSINGS[preprocessing], root)


def _prepared(
    source: _Source, train: _Part, test: _Part, preprocessing: Preprocessing, root: Path
) -> ImageData:
    pixels, labels = train
    kept, held_out = preprocessing.split(len(labels))
    normalize = preprocessing.fit(pixels, root / source.folder)
    black = normalize(torch.zeros(1, *pixels.shape[1:], dtype=torch.uint8))
    return ImageData(
        title=source.title,
        train=TensorDataset(normalize(pixels[kept]), labels[kept]),
        test=TensorDataset(normalize(test[0]), test[1]),
        num_classes=source.num_classes,
        background=black[0, :, 0, 0],
        val=(
            TensorDataset(normalize(pixels[held_out]), labels[held_out]) if len(held_out) else None
        ),
        augmentation=preprocessing.augmentation,
    )


def _read(source: _Source, root: Path, train: bool) -> _Part:
    with needs_extra("train"):
        from torchvision import datasets

    read: Callable[..., Any] = getattr(datasets, source.cls)
    try:
        found = read(root, train=train, download=True)  # downloads only what is missing
    except (RuntimeError, URLError, OSError) as error:
        raise FileNotFoundError(
            f"{source.title} is not in {root / source.folder} and could not be downloaded "
            f"({error}). Where there is a network, run: python -c "
            f'"from torchvision.datasets import {source.cls}; '
            f"{source.cls}('{root}', download=True)\""
        ) from error
    pixels = torch.as_tensor(found.data)
    # MNIST's are [N, H, W], CIFAR's [N, H, W, C].
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.as_tensor(found.targets).long()


def _check_name(dataset: str) -> None:
    if dataset not in names():
        raise ValueError(f"dataset must be one of {', '.join(names())}, found {dataset!r}")
