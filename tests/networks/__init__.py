"""Binary networks as people really write them, for whatever must take any network.

One module per origin; each spells its layers the way that origin does, in-place tricks included.
Constructors take the number of classes and a width, by default the published ones; NETWORKS holds
them at sizes that a test can afford.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from networks import (
    binaryconnect,
    binarynet_new,
    binarynet_old,
    birealnet,
    bnew,
    densenet,
    ebnn,
    reactnet,
    shufflenet,
    two_heads,
    xnornet,
)
from networks.recipes import first_output, randomize, train_briefly

__all__ = ["NETWORKS", "Network", "first_output", "randomize", "train_briefly"]

DIGIT, CIFAR, SMALL_IMAGENET, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)


class Network(NamedTuple):
    """A network at test size: its constructor, its inputs' shapes without batch, its classes."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    classes: int

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random images: multiples of 1/128, so that sums of pixels are exact in any order."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(-128, 128, (batch, *shape), generator=generator) / 128
            for shape in self.shapes
        )


NETWORKS = {
    "binarynet_old_vgg": Network(partial(binarynet_old.VGG, width=11), (CIFAR,), 10),
    "binarynet_old_alexnet": Network(partial(binarynet_old.AlexNet, 13, width=5), (IMAGENET,), 13),
    "binarynet_old_resnet": Network(partial(binarynet_old.ResNet, width=17), (CIFAR,), 10),
    "binarynet_old_mlp": Network(partial(binarynet_old.MLP, width=25), (DIGIT,), 10),
    "binarynet_new_vgg": Network(partial(binarynet_new.VGG, width=11), (CIFAR,), 10),
    "birealnet": Network(partial(birealnet.BiRealNet, 13, width=11), (SMALL_IMAGENET,), 13),
    "reactnet": Network(partial(reactnet.ReActNetA, 13, width=5), (SMALL_IMAGENET,), 13),
    "xnornet": Network(partial(xnornet.NIN, width=7), (CIFAR,), 10),
    "ebnn_convnet": Network(ebnn.ConvNet, (DIGIT,), 10),
    "ebnn_alexnet": Network(ebnn.AlexNet, (DIGIT,), 10),
    "binaryconnect": Network(partial(binaryconnect.CNN, width=9), (CIFAR,), 10),
    "bnew": Network(partial(bnew.BiRealResNet20, width=11), (CIFAR,), 10),
    "densenet": Network(partial(densenet.DenseNet, width=11, blocks=(3, 3, 2)), (CIFAR,), 10),
    "shufflenet": Network(partial(shufflenet.ShuffleNet, width=18), (CIFAR,), 10),
    "two_heads": Network(partial(two_heads.TwoHeads, width=19), ((3, 24, 24), (3, 24, 24)), 7),
}
