"""The networks of `bnn_ext.models`, one of each kind, at sizes that a test can afford."""

from __future__ import annotations

from typing import Any

import torch
from small_models import with_statistics
from torch import Tensor, nn

from bnn_ext import models

DIGIT, CIFAR, IMAGE = (1, 28, 28), (3, 32, 32), (3, 64, 64)

# Settings and the shape of the input, without the batch.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "alexnet_binary": ({"input_size": 64, "inflate": 1, "hidden": 33}, IMAGE),
    "binary_dense_mlp": ({"hidden": (33, 20)}, DIGIT),
    "binaryconnect_cnn": ({"width": 0.1}, CIFAR),
    "binaryconnect_mlp": ({"hidden": 40}, DIGIT),
    "birealnet18": ({"num_classes": 13, "width": 0.2}, IMAGE),
    "bnn_mlp": ({"hidden": 40}, DIGIT),
    "brn": ({"blocks": 2, "width": 11}, CIFAR),
    "digits_cnn": ({}, (1, 8, 8)),
    "ebnn_alexnet": ({}, DIGIT),
    "ebnn_convnet": ({"binary_input": True}, DIGIT),
    "mlp_mnist_binary": ({"hidden": 40}, DIGIT),
    "nofloatbrn": ({"blocks": 2, "width": 11}, CIFAR),
    "norealbrn": ({"blocks": 2, "width": 11}, CIFAR),
    "reactnet18": ({"num_classes": 13, "width": 0.2}, IMAGE),
    "reactnet_a": ({"num_classes": 13, "width": 0.2}, IMAGE),
    "resnet_binary": ({"inflate": 1, "depth": 8}, CIFAR),
    "vgg_small_binary": ({"width": 0.1, "hidden": (33,)}, CIFAR),
    "wrn22": ({}, CIFAR),
    "xnor_lenet5": ({}, DIGIT),
    "xnor_nin": ({"width": 0.1}, CIFAR),
}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """The network in eval mode with random statistics, and a batch of images."""
    settings, shape = SMALL[name]
    # Multiples of 1/128, so that sums of pixels are exact in any order.
    images = torch.randint(-128, 128, (2, *shape)) / 128
    return with_statistics(models.create(name, **settings)), images
