"""Real inputs times binary weights: a network's first layer, and a layer of BinaryConnect."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from peers import Work, float_peers
from run import Run, parser
from timing import Implementation
from torch import Tensor, nn

from bnn_ext import ops, reference

FEATURES = 4096  # of the linear layer, in and out


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)  # 0 stays 0, but nothing in torch is faster


def binary(layer: nn.Module) -> Tensor:
    """Makes the weights signs; returns them packed, channels last."""
    layer.weight.data = reference.sign(layer.weight)
    weight = layer.weight.detach()
    return ops.pack(weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight)


def at_levels(
    levels: Sequence[str], input: str, call: Callable[[], Tensor], output: str, macs: int
) -> list[Implementation]:
    """Without the register peak, which is that of another inner step."""
    name = f"bnn_ext {input}"
    return [Implementation(name, output, call, macs, level=level) for level in levels]


def first_layer(run: Run, batch: int) -> None:
    """3 -> 128 channels, 3x3, padding 1, on 32x32 images, to the signs of its outputs."""
    conv = nn.Conv2d(3, 128, 3, padding=1, bias=False)
    weight, image = binary(conv), torch.randn(batch, 3, 32, 32)
    pixels = (128 * torch.rand(batch, 3, 32, 32)).to(torch.uint8)
    fixed = {"padding": 1, "tiles": ops.tile_weight(weight)}
    ours = {
        "float32 image": (image, torch.zeros(128)),
        "uint8 image": (pixels, torch.zeros(128, dtype=torch.int32)),
    }
    macs = batch * 128 * 3 * (3 * 32 - 2) ** 2  # without the products that meet the padding
    implementations: list[Implementation] = []
    for name, (x, threshold) in ours.items():
        call = functools.partial(
            ops.binary_weight_conv2d_bits, x, weight, 3, threshold=threshold, **fixed
        )
        implementations += at_levels(run.levels, name, call, "bits", macs)
    network = nn.Sequential(conv, Sign())
    work = Work(network, image, macs, run.options.threads, network(image))
    run.compare("first layer", f"{batch}x3x32x32 -> 128", implementations, float_peers(work))


def binary_connect(run: Run, rows: int) -> None:
    linear = nn.Linear(FEATURES, FEATURES, bias=False)
    weight, x = binary(linear), torch.randn(rows, FEATURES)
    tiles, macs = ops.tile_weight(weight), rows * FEATURES**2
    implementations: list[Implementation] = []
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        call: Callable[[], Tensor] = functools.partial(
            ops.binary_weight_linear, x.to(dtype), weight, FEATURES, tiles=tiles
        )
        implementations += at_levels(run.levels, f"{kind} input", call, kind, macs)
    work = Work(linear, x, macs, run.options.threads, linear(x))
    shape = f"{rows}x{FEATURES} -> {FEATURES}"
    run.compare("binary-weight linear", shape, implementations, float_peers(work))


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=30)
    options.add_argument("--batch", type=int, default=1, help="images or rows in a call (1)")
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    first_layer(run, chosen.batch)
    binary_connect(run, chosen.batch)
    run.write(f"real_inputs_batch{chosen.batch}_threads{chosen.threads}")


if __name__ == "__main__":
    main()
