"""Images in files, one folder for each class, decoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bnn_ext._extras import needs_extra
from bnn_ext.data.images import ImageData
from bnn_ext.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD

with needs_extra("train"):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

_SIZE = 224


class FolderImages(Dataset[Any]):
    """Image files as batches of 224x224 pixels, normalized with ImageNet's statistics.

    `dataset[indices]` scales the shorter side to 256 and cuts out the centre;
    `random_crops` cuts out a random part and flips half of the images.

    Args:
        folder: holds a folder for each class.

    Raises:
        FileNotFoundError: there is no class, or a class without images.
    """

    def __init__(self, folder: Path) -> None:
        self.files = ImageFolder(str(folder))
        finish = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self._centre = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(_SIZE), *finish]
        )
        self._random = transforms.Compose(
            [transforms.RandomResizedCrop(_SIZE), transforms.RandomHorizontalFlip(), *finish]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._batch(indices, [self._centre] * len(indices))

    def random_crops(self, indices: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """A batch for training.

        Args:
            indices: `[N]`.
            draws: uniform on [0, 1), `[N, ...]`; the first of an image decides what happens to it.
        """

        def crop(draw: float) -> Callable[[Any], Tensor]:
            def apply(image: Any) -> Tensor:
                with torch.random.fork_rng(devices=[]):  # torchvision draws from the global one
                    torch.manual_seed(int(draw * 2**53))
                    return self._random(image)

            return apply

        return self._batch(indices, [crop(draw) for draw in draws[:, 0].tolist()])

    def _batch(
        self, indices: Tensor, transform: list[Callable[[Any], Tensor]]
    ) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for index, change in zip(indices.tolist(), transform, strict=True):
            image, label = self.files[index]
            images.append(change(image))
            labels.append(label)
        return torch.stack(images), torch.tensor(labels)


def imagenet(root: Path) -> ImageData:
    """ImageNet, or any images in folders `ImageNet/train/<class>` and `ImageNet/val/<class>`.

    Raises:
        FileNotFoundError: a folder is missing, or the two parts have other classes.
    """
    folder = root / "ImageNet"
    parts = []
    for name in ("train", "val"):
        try:
            parts.append(FolderImages(folder / name))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"ImageNet is not in {folder / name} ({error}). Its archives come from "
                "https://image-net.org/download-images; with them in that folder's parent, run: "
                'python -c "from torchvision.datasets import ImageNet; '
                f"[ImageNet('{folder}', split=s) for s in ('train', 'val')]\""
            ) from error
    train, val = parts
    if train.files.classes != val.files.classes:
        raise FileNotFoundError(
            f"{folder / 'train'} and {folder / 'val'} must hold the same classes, found "
            f"{len(train.files.classes)} and {len(val.files.classes)}, not all of the same names"
        )
    return ImageData(
        title="ImageNet",
        train=train,
        test=val,
        num_classes=len(train.files.classes),
        background=0.0,
    )
