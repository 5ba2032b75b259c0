"""The networks that are compared, and what the peers need of them: float twins, steady images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext.models import birealnet18, mnist_cnn, reactnet_a, resnet_binary

MARGIN = 2e-6  # of the rms, against float32's rounding of 6e-8 summed up over a network


def vgg_small(num_classes: int = 10) -> nn.Sequential:
    """For 32x32 images: six convolutions and three linear layers, BinaryNet's for CIFAR-10."""
    layers: list[nn.Module] = []
    channels = 3
    for number, width in enumerate((128, 128, 256, 256, 512, 512)):
        quantizer = None if number == 0 else "ste_sign"
        layers.append(
            bnn.BinaryConv2d(channels, width, 3, padding=1, bias=False, input_quantizer=quantizer)
        )
        layers += [nn.MaxPool2d(2)] if number % 2 else []
        layers += [nn.BatchNorm2d(width), nn.Hardtanh()]
        channels = width
    layers.append(nn.Flatten())
    features = 512 * 4 * 4
    for width in (1024, 1024, num_classes):
        layers += [bnn.BinaryLinear(features, width, bias=False), nn.BatchNorm1d(width)]
        layers += [nn.Hardtanh()] if width != num_classes else []
        features = width
    return nn.Sequential(*layers)


MODELS = {
    "vgg_small": (vgg_small, (3, 32, 32)),
    "mnist_cnn": (mnist_cnn, (1, 28, 28)),
    "birealnet18": (birealnet18, (3, 224, 224)),
    "reactnet_a": (reactnet_a, (3, 224, 224)),
    "resnet_binary": (resnet_binary, (3, 32, 32)),
}


# --- modules --------------------------------------------------------------------------------------


def takes_signs(layer: nn.Module) -> bool:
    """Whether it is a binary layer that takes the sign of its input."""
    binary = isinstance(layer, (bnn.BinaryConv2d, bnn.BinaryLinear))
    return binary and layer.input_quantizer is not None


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Its modules in the order they run, Sequentials opened.

    What does nothing is left out: an Identity, and a Hardtanh around 0 that only a sign reads.
    """
    opened = list(_opened(model))
    return [
        layer
        for i, layer in enumerate(opened)
        if not (_keeps_signs(layer) and _meets_a_sign(opened[i + 1 :]))
    ]


def _opened(model: nn.Module) -> Iterator[nn.Module]:
    if isinstance(model, nn.Sequential):
        for layer in model:
            yield from _opened(layer)
    elif not isinstance(model, nn.Identity):
        yield model


def _keeps_signs(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Hardtanh) and layer.min_val < 0 < layer.max_val


def _meets_a_sign(layers: list[nn.Module]) -> bool:
    following = [layer for layer in layers if not isinstance(layer, nn.Flatten)]
    return bool(following) and takes_signs(following[0])


# --- float twins ----------------------------------------------------------------------------------


class Sign(nn.Module):
    """torch.sign: faster than anything that makes 0 a 1, and no value here is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def float_twin(model: nn.Module) -> nn.Sequential:
    """The same function in ordinary layers: weights of ±1, or ±s, and signs as modules."""
    twins: list[nn.Module] = []
    for layer in layers_of(model):
        if takes_signs(layer):
            twins.append(Sign())
        twins.append(_twin(layer))
    return nn.Sequential(*twins).eval()


def _twin(layer: nn.Module) -> nn.Module:
    if isinstance(layer, bnn.Residual):
        parts = (layer.branch, layer.shortcut, layer.activation)
        return bnn.Residual(*map(float_twin, parts))
    if isinstance(layer, bnn.BinaryConv2d):
        twin: nn.Module = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
    elif isinstance(layer, bnn.BinaryLinear):
        twin = nn.Linear(layer.in_features, layer.out_features)
    else:
        return layer
    twin.weight, twin.bias = nn.Parameter(layer.binary_weight), layer.bias
    return twin


# --- statistics and images ------------------------------------------------------------------------


def calibrated(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """In eval mode, its BatchNorms with the statistics of `images`, so that no bit is constant.

    All learned scales and shifts are drawn anew: fresh from its constructor, a network has none.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.momentum = 1.0
        elif isinstance(layer, bnn.LearnableBias):
            nn.init.uniform_(layer.bias, -0.25, 0.25)
    model.train()(images)
    return model.eval()


def steadiest_first(model: nn.Sequential, images: Tensor) -> tuple[Tensor, int]:
    """`images` sorted by how little a rounding can do to them, and how many are steady.

    One bit that falls the other way changes every layer behind it, and in the end the answer by
    tens of percent. So images can only be compared where no rounding moves a bit: those whose
    values in front of signs all keep `MARGIN` of their root mean square away from 0. The best
    image counts as steady even if it does not.
    """
    margins = torch.full((len(images),), torch.inf)

    def look(layer: nn.Module, arguments: tuple[Tensor]) -> None:
        values = arguments[0].flatten(1)
        nearest = values.abs().amin(1) / values.square().mean(1).sqrt()
        torch.minimum(margins, nearest, out=margins)

    hooks = [
        layer.register_forward_pre_hook(look) for layer in model.modules() if takes_signs(layer)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    margins, order = margins.sort(descending=True)
    return images[order], max(1, int((margins > MARGIN).sum()))
