"""Whole networks on a GPU: converted to packed bits, and their float twins in fp16."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from gpu import device
from gpu.run import Candidate, Run, parser
from measured_networks import MODELS as ALL_MODELS
from measured_networks import calibrated, float_twin
from peers import ROUNDING
from torch import Tensor, nn

import bnn_ext

MODELS = {name: ALL_MODELS[name] for name in ("vgg_small", "birealnet18", "reactnet_a")}
BATCHES = (256, 64, 1)
EXAMPLES = 8  # images that set the statistics, and whose answers are compared


class Network:
    """A network and its answers on the CPU; converted, and as a float twin, on the GPU."""

    def __init__(self, model: nn.Sequential, image: Sequence[int]) -> None:
        # Multiples of 1/128, so that sums of pixels are exact in any order.
        examples = torch.randint(-128, 128, (EXAMPLES, *image)) / 128
        model = calibrated(model, examples).to(memory_format=torch.channels_last)
        self.examples = examples.to(memory_format=torch.channels_last)
        self.answers = model(self.examples)
        counted = bnn_ext.summary(model, self.examples)
        self.macs = counted.binary_macs + counted.real_macs  # of one image
        self.packed = bnn_ext.convert(model, self.examples).to(device.DEVICE)
        twin = float_twin(copy.deepcopy(model))
        self.twin = twin.to(device.DEVICE, torch.float16).to(memory_format=torch.channels_last)


class Problem:
    """A network and a batch of its examples, again and again."""

    def __init__(self, network: Network, batch: int) -> None:
        self.network = network
        repeats = -(-batch // EXAMPLES)
        images = network.examples.repeat(repeats, 1, 1, 1)[:batch].to(device.DEVICE)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.half_images = self.images.half()

    def candidates(self) -> list[Candidate]:
        return [
            Candidate("bnn_ext CUDA graph", "float32", self._graph),
            Candidate("bnn_ext CUDA graph, TF32", "float32", self._graph_tf32),
            Candidate("bnn_ext torch.compile", "float32", self._compiled),
            Candidate("bnn_ext eager", "float32", self._eager),
            Candidate("torch fp16 NHWC CUDA graph", "float16", self._twin_graph),
            Candidate("torch fp16 NHWC torch.compile", "float16", self._compiled_twin),
            Candidate("torch fp16 NHWC eager", "float16", self._twin),
        ]

    def _eager(self) -> Callable[[], Tensor]:
        return self._checked(_warm(functools.partial(self.network.packed, self.images)))

    def _compiled(self) -> Callable[[], Tensor]:
        compiled = _compile(self.network.packed)
        return self._checked(_warm(functools.partial(compiled, self.images)))

    def _graph(self) -> Callable[[], Tensor]:
        run = functools.partial(self.network.packed, self.images)
        return self._checked(device.graphed(run))

    def _graph_tf32(self) -> Callable[[], Tensor]:
        """Real convolutions in TF32, as torch does by default: rounds, and is not compared."""
        torch.backends.cudnn.allow_tf32 = True
        try:
            return device.graphed(functools.partial(self.network.packed, self.images))
        finally:
            torch.backends.cudnn.allow_tf32 = False

    def _twin(self) -> Callable[[], Tensor]:
        return _warm(functools.partial(self.network.twin, self.half_images))

    def _compiled_twin(self) -> Callable[[], Tensor]:
        return _warm(functools.partial(_compile(self.network.twin), self.half_images))

    def _twin_graph(self) -> Callable[[], Tensor]:
        return device.graphed(functools.partial(self.network.twin, self.half_images))

    def _checked(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Some answer is that of the CPU.

        Not every one: real layers round in another order here, and a bit that this moves changes
        an answer by tens of percent. A wrong kernel spoils all of them.
        """
        examples = self.network.examples.split(len(self.images))
        answers = self.network.answers.split(len(self.images))
        errors = []
        for images, expected in zip(examples, answers, strict=True):
            self.images[: len(images)] = images.to(device.DEVICE)  # also a graph reads them there
            found = run()[: len(images)].cpu()
            errors.append((found - expected).norm(dim=1) / expected.norm(dim=1))
        least = torch.cat(errors).min()
        assert least <= ROUNDING, f"every answer is wrong, by {least:.1%} of its norm at least"
        return run


def _compile(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, mode="reduce-overhead", dynamic=False)


def _warm(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """After the calls in which torch compiles, records graphs and chooses algorithms."""
    for _ in range(3):
        run()
    return run


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    options.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="(256 64 1, the most telling first)"
    )
    chosen = options.parse_args(arguments)
    run = Run("models", chosen, from_idle=True)
    torch.backends.cudnn.allow_tf32 = False  # answers are compared with those of float32
    for model in chosen.models:
        make, image = MODELS[model]
        network = None
        for batch in chosen.batches:
            what, shape = f"model_{model}", "x".join(map(str, (batch, *image)))
            if run.has_time(what, shape):
                with run.problem(what, shape) as compare:
                    network = network or Network(make(), image)
                    compare(batch * network.macs, Problem(network, batch).candidates())
    run.finish()


if __name__ == "__main__":
    main()
