"""Networks made of binary layers, ready to train and to convert, and their float twins.

Each constructor takes its settings and gives a `torch.nn.Sequential`; a name does as well:

    model = models.vgg_small_binary(num_classes=10, width=0.5)
    model = models.create("vgg_small_binary", num_classes=10, width=0.5)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from bnn_ext.models.alexnet import alexnet, alexnet_binary
from bnn_ext.models.binaryconnect import binaryconnect_cnn, binaryconnect_mlp
from bnn_ext.models.birealnet import birealnet18, birealnet34
from bnn_ext.models.brn import (
    brn,
    nofloatbrn,
    noprelubrn,
    norealbrn,
    noshiftbrn,
    nsbrn,
    nsstebrn,
    stebrn,
)
from bnn_ext.models.ebnn import ebnn_alexnet, ebnn_convnet
from bnn_ext.models.mlp import binary_dense_mlp, bnn_mlp, mlp_mnist_binary
from bnn_ext.models.reactnet import reactnet18, reactnet_a
from bnn_ext.models.resnet import resnet, resnet_binary
from bnn_ext.models.small_cnn import digits_cnn, mnist_cnn
from bnn_ext.models.vgg import (
    vgg_cifar10,
    vgg_cifar10_binary,
    vgg_cifar100_binary,
    vgg_small_binary,
)
from bnn_ext.models.wide_resnet import wrn22
from bnn_ext.models.xnor import xnor_lenet5, xnor_nin

__all__ = [
    "alexnet",
    "alexnet_binary",
    "binary_dense_mlp",
    "binaryconnect_cnn",
    "binaryconnect_mlp",
    "birealnet18",
    "birealnet34",
    "bnn_mlp",
    "brn",
    "create",
    "digits_cnn",
    "ebnn_alexnet",
    "ebnn_convnet",
    "mlp_mnist_binary",
    "mnist_cnn",
    "names",
    "nofloatbrn",
    "noprelubrn",
    "norealbrn",
    "noshiftbrn",
    "nsbrn",
    "nsstebrn",
    "reactnet18",
    "reactnet_a",
    "resnet",
    "resnet_binary",
    "stebrn",
    "vgg_cifar10",
    "vgg_cifar100_binary",
    "vgg_cifar10_binary",
    "vgg_small_binary",
    "wrn22",
    "xnor_lenet5",
    "xnor_nin",
]


def names() -> list[str]:
    """The names that `create` knows, in alphabetical order."""
    return [name for name in __all__ if name not in ("create", "names")]


def create(name: str, **settings: Any) -> nn.Sequential:
    """Builds the model of this name.

    Args:
        name: one of `names()`.
        settings: arguments of the constructor.

    Raises:
        ValueError: no model has this name, or a setting has a value that the constructor refuses.
        TypeError: the constructor has no such setting.
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}, found {name!r}")
    constructor: Callable[..., nn.Sequential] = globals()[name]
    known = inspect.signature(constructor).parameters
    for setting in settings:
        if setting not in known:
            raise TypeError(f"settings of {name} must be among {', '.join(known)}, found {setting}")
    return constructor(**settings)
