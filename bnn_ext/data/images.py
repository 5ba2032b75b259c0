"""The common form of the data sets, and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

DRAWS = 3  # random numbers that `augment` needs of an image


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, each image by its own."""

    shift: int = 0  # up to so many pixels in each direction
    flip: bool = False  # half of the images left to right


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Parts in memory hold two tensors: normalized images, float32 `[N, C, H, W]`, and labels, int64
    `[N]` in 0 .. num_classes - 1. `dataset[indices]` of any part gives these for a batch.
    """

    title: str
    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    background: float | Tensor  # the normalized value of an empty pixel, perhaps of each channel
    val: Dataset[Any] | None = None  # training images held out to choose the best epoch with
    augmentation: Augmentation | None = None


def augment(
    images: Tensor, augmentation: Augmentation, fill: float | Tensor, draws: Tensor
) -> Tensor:
    """Changes each image at random, as its draws say.

    An image's result depends on nothing but the image and its own draws: it is the same in whatever
    batch, process or order images come.

    Args:
        images: `[N, C, H, W]`.
        augmentation: what may happen to them.
        fill: value of the pixels that come in from outside, for all channels or `[C]`.
        draws: uniform on [0, 1), `[N, DRAWS]`.

    Returns:
        `[N, C, H, W]`.
    """
    if augmentation.shift > 0:
        offsets = (draws[:, :2].T * (2 * augmentation.shift + 1)).long()
        images = _shift(images, offsets, augmentation.shift, fill)
    if augmentation.flip:
        images = torch.where(draws[:, 2].view(-1, 1, 1, 1) < 0.5, images, images.flip(-1))
    return images


def _shift(images: Tensor, offsets: Tensor, limit: int, fill: float | Tensor) -> Tensor:
    """Cuts each image out of its padded form at its own offsets `[2, N]` from the top left."""
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * limit, width + 2 * limit)
    padded[:] = torch.as_tensor(fill, dtype=images.dtype).view(-1, 1, 1)
    padded[:, :, limit : limit + height, limit : limit + width] = images
    top, left = offsets[:, :, None]
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    image = torch.arange(count)[:, None, None]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()
