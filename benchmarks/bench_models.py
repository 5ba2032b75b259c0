"""Whole networks: converted to packed bits, and their float twins at the peers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import openvino_binary
import torch
from peers import Peers, Work, float_peers
from run import Run, parser
from timing import Implementation
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext import reference
from bnn_ext.models import mnist_cnn


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


MODELS = {"vgg_small": (vgg_small, (3, 32, 32)), "mnist_cnn": (mnist_cnn, (1, 28, 28))}


class Sign(nn.Module):
    """±1, as the binary layers' input quantizer gives it."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.sign(x)


def float_twin(model: nn.Sequential) -> nn.Sequential:
    """The same function in ordinary layers: weights of ±1, signs as modules of their own."""
    return nn.Sequential(*_float_layers(model)).eval()


def _float_layers(model: nn.Sequential) -> Iterator[nn.Module]:
    for layer in model:
        if isinstance(layer, (bnn.BinaryConv2d, bnn.BinaryLinear)):
            if layer.input_quantizer is not None:
                yield Sign()
            out, size = layer.weight.shape[:2]
            if isinstance(layer, bnn.BinaryConv2d):
                twin: nn.Module = nn.Conv2d(size, out, 3, padding=1, bias=False)
            else:
                twin = nn.Linear(size, out, bias=False)
            twin.weight = nn.Parameter(layer.binary_weight)
            yield twin
        elif not isinstance(layer, nn.Hardtanh):  # keeps the sign that comes next
            yield layer


def calibrated(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """In eval mode, its BatchNorms with the statistics of `images`, so that no bit is constant."""
    for layer in model:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.momentum = 1.0
    model.train()(images)
    return model.eval()


class Problem:
    """A network and a batch of images, both in torch.channels_last, which suits torch best."""

    def __init__(self, model: nn.Sequential, images: Tensor, threads: int) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.images = images.to(memory_format=torch.channels_last)
        self.packed = bnn_ext.convert(self.model, self.images)
        self.macs = len(images) * sum(layer.macs or 0 for layer in self.packed.report.layers)
        self.threads = threads

    def ours(self, levels: Sequence[str]) -> list[Implementation]:
        run = functools.partial(self.packed, self.images)
        return [
            Implementation("bnn_ext", "float32", run, self.macs, level=level) for level in levels
        ]

    def peers(self) -> Peers:
        expected = self.model(self.images)
        work = Work(float_twin(self.model), self.images, self.macs, self.threads, expected)
        binary = functools.partial(openvino_binary.network, work, self.model)
        return {"OpenVINO binary": binary} | float_peers(work)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=30)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="(1 16)")
    options.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for name in chosen.models:
        make, image = MODELS[name]
        # Multiples of 1/128, so that sums of pixels are exact in any order.
        images = torch.randint(-128, 128, (max(16, *chosen.batches), *image)) / 128
        model = calibrated(make(), images)
        for batch in chosen.batches:
            problem = Problem(model, images[:batch], chosen.threads)
            shape = "x".join(str(size) for size in (batch, *image))
            run.compare(f"model_{name}", shape, problem.ours(run.levels), problem.peers())
    run.write(f"models_threads{chosen.threads}")


if __name__ == "__main__":
    main()
