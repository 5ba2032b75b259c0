"""Whole networks: converted to packed bits, and their float twins at the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import openvino_network
import torch
from measured_networks import MODELS, calibrated, float_twin, steadiest_first
from parts import Part, profiled_parts, real_layers
from peers import ROUNDING, Peers, Work, check, float_peers
from run import Run, add_device, on_cuda, parser
from timing import Implementation
from torch import Tensor, nn

import bnn_ext

PROFILED_CALLS = 20


class Problem:
    """A network and a batch of images, both in torch.channels_last, which suits torch best.

    All answers are compared on the first `steady` images, see `measured_networks.steadiest_first`.
    """

    def __init__(self, model: nn.Sequential, images: Tensor, steady: int, threads: int) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.images = images.to(memory_format=torch.channels_last)
        self.packed = bnn_ext.convert(self.model, self.images)
        of_one = bnn_ext.summary(self.model, self.images)
        self.macs = len(images) * (of_one.binary_macs + of_one.real_macs)
        self.expected = self.model(self.images[:steady])
        self.threads = threads

    def ours(self, levels: Sequence[str]) -> list[Implementation]:
        run = functools.partial(self.packed, self.images)
        check("bnn_ext", run(), self.expected, ROUNDING)
        return [
            Implementation("bnn_ext", "float32", run, self.macs, level=level) for level in levels
        ]

    def peers(self) -> Peers:
        twin = float_twin(self.model)
        work = Work(twin, self.images, self.macs, self.threads, self.expected)
        binary = functools.partial(openvino_network.peer, work, self.model)
        return {"OpenVINO binary": binary} | float_peers(work)

    def real_layers(self) -> list[Implementation]:
        return real_layers(self.model, self.images)

    def parts(self) -> dict[str, Callable[[], Sequence[Part]]]:
        ours = functools.partial(self.packed, self.images)
        openvino = functools.partial(
            openvino_network.counted_parts, self.model, self.images, self.threads
        )
        return {
            "bnn_ext": functools.partial(profiled_parts, ours, PROFILED_CALLS),
            "OpenVINO binary": functools.partial(openvino, PROFILED_CALLS),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    if on_cuda(arguments):
        from gpu import models

        return models.main(arguments)
    return on_cpu(arguments)


@torch.no_grad()
def on_cpu(arguments: Sequence[str] | None) -> None:
    options = parser(__doc__, rounds=15)
    add_device(options)
    options.add_argument(
        "--batches", type=int, nargs="+", help="(1 16, for images of 224x224 only 1)"
    )
    options.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for name in chosen.models:
        make, image = MODELS[name]
        # Multiples of 1/128, so that sums of pixels are exact in any order.
        batches = chosen.batches or ([1] if image[-1] == 224 else [1, 16])
        images = torch.randint(-128, 128, (max(16, *batches), *image)) / 128
        model = calibrated(make(), images)
        images, steady = steadiest_first(model, images)
        for batch in batches:
            problem = Problem(model, images[:batch], steady, chosen.threads)
            shape = "x".join(str(size) for size in (batch, *image))
            what = f"model_{name}"
            run.compare(
                what, shape, problem.ours(run.levels), problem.peers(), problem.real_layers()
            )
            run.divide(what, shape, problem.parts())
    run.write(f"models_threads{chosen.threads}")


if __name__ == "__main__":
    main()
