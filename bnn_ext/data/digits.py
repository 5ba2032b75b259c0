"""Handwritten digits of the UCI repository, as they come with scikit-learn."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from bnn_ext._extras import needs_extra
from bnn_ext.data.images import ImageData

_TEST_IMAGES = 360  # a fifth


def digits() -> ImageData:
    """1797 real images of digits, 8x8 pixels: 1437 to train with, 360 to test with.

    The split is fixed, and each digit has the same share in both parts.

    Pixels 0 .. 16 become `pixel / 8 - 1`, from -1 to 1. The divisor is a power of two so that sums
    of ±pixels are exact in float32, whatever their order: a first layer with binary weights gives
    the same bits on every machine and in every implementation.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998; its test part, 1797 images.
    """
    with needs_extra("demo"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 8 - 1
    labels = torch.from_numpy(source.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=_TEST_IMAGES, stratify=source.target, random_state=0
    )
    return ImageData(
        title="scikit-learn's handwritten digits",
        train=TensorDataset(images[train], labels[train]),
        test=TensorDataset(images[test], labels[test]),
        num_classes=10,
        background=-1.0,
    )
