"""A step of training of whole networks: forward, backward and Adam, on packed bits or in floats."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from measured_networks import MODELS
from run import Run, parser
from timing import Implementation
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn

BATCHES = {"vgg_small": 64, "resnet_binary": 64, "birealnet18": 16}


class Step:
    """A step of one copy of a network, always on the same images."""

    def __init__(
        self, model: nn.Module, images: Tensor, forward: str | None, backward: str | None
    ) -> None:
        self.model = copy.deepcopy(model)
        for layer in self.model.modules():
            if isinstance(layer, (bnn.BinaryLinear, bnn.BinaryConv2d)):
                layer.training_forward, layer.training_backward = forward, backward
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.images = images
        self.labels = torch.randint(0, 10, images.shape[:1])

    @torch.inference_mode(False)
    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--batch", type=int, help=f"({BATCHES})")
    options.add_argument("--models", nargs="+", choices=MODELS, default=[*BATCHES])
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for name in chosen.models:
        make, image = MODELS[name]
        batch = chosen.batch or BATCHES.get(name, 64)
        images = torch.randn(batch, *image)
        model = make().train()
        of_one = bnn_ext.summary(model, images[:1])
        # The products of the forward, and of the gradients to the input and the weight.
        macs = 3 * batch * (of_one.binary_macs + of_one.real_macs)

        ours = [
            Implementation(title, "float32", Step(model, images, None, backward), macs, level=level)
            for title, backward in (("bnn_ext", None), ("bnn_ext float gradients", "float"))
            for level in run.levels
        ]
        in_floats = Step(model, images, "float", "float")
        torch_step = Implementation("torch float32", "float32", in_floats, macs)
        run.compare(
            f"training_{name}",
            "x".join(map(str, (batch, *image))),
            ours,
            {"torch float32": functools.partial(list, [torch_step])},
        )
    run.write(f"training_step_threads{chosen.threads}")


if __name__ == "__main__":
    main()
