"""The common form of the data sets, their batches, and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images, all in memory.

    Both parts hold two tensors: normalized images, float32 `[N, C, H, W]`, and labels, int64 `[N]`
    in 0 .. num_classes - 1.
    """

    title: str
    train: TensorDataset
    test: TensorDataset
    num_classes: int
    background: float  # the normalized value of an empty pixel


def loader(
    dataset: TensorDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> DataLoader[Any]:
    """Batches `(images, labels)` of a part of `ImageData`.

    A batch is taken by one indexing of the tensors, not put together from single images: many
    times faster, and no worker processes are needed.

    Args:
        dataset: images and labels.
        batch_size: images in a batch.
        shuffle: new random order in every pass, for training; the incomplete last batch is then
            left out, because BatchNorm's statistics over a few images would be poor.
        augment: applied to the images of each batch.

    Raises:
        ValueError: `batch_size` is not positive, or leaves no full batch to shuffle.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if shuffle and batch_size > len(dataset):
        raise ValueError(
            f"batch_size must be at most {len(dataset)}, the images there are, found {batch_size}"
        )
    order: Sampler[int] = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)

    def collate(batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return (images if augment is None else augment(images)), labels

    return DataLoader(
        dataset,
        batch_size=None,
        sampler=BatchSampler(order, batch_size, drop_last=shuffle),
        collate_fn=collate,
    )


def random_shift(images: Tensor, limit: int, fill: float) -> Tensor:
    """Moves each image by its own random offset of up to `limit` pixels in each direction.

    Args:
        images: `[N, C, H, W]`.
        limit: largest offset in pixels; offsets are uniform on -limit .. limit.
        fill: value of the pixels that come in from outside.

    Returns:
        `[N, C, H, W]`.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (limit, limit, limit, limit), value=fill)
    top, left = torch.randint(0, 2 * limit + 1, (2, count, 1))
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    image = torch.arange(count)[:, None, None]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()
