"""The operators that memory bounds on a GPU, against copies of as many bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gpu import device
from gpu.operands import expect_equal, random_bits, spread
from gpu.run import Candidate, Run, parser
from peers import ROUNDING, check
from torch import Tensor

from bnn_ext import ops, reference

MAPS = (256, 56, 56, 64)  # images, height, width, channels: too many for L2
FEATURES = 8192  # in and out of the linear layer, for one input
COMPARED_IMAGES = 2


class Kernel(NamedTuple):
    """An operator and its operands.

    Attributes:
        what, shape, output: the operator, its input, its output's type.
        read, written: bytes.
        make: makes the operands and gives the call and the check of its result.
    """

    what: str
    shape: str
    output: str
    read: int
    written: int
    make: Callable[[], tuple[Callable[[], Tensor], Callable[[Tensor], None]]]

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def candidates(self) -> list[Candidate]:
        return [
            Candidate("bnn_ext auto", self.output, self._prepare, self.bytes),
            Candidate("torch copy_", "uint8", self._copy, self.bytes // 2 * 2),
        ]

    def _prepare(self) -> Callable[[], Tensor]:
        run, check_result = self.make()
        check_result(run())
        return run

    def _copy(self) -> Callable[[], Tensor]:
        source = torch.randint(256, (self.bytes // 2,), dtype=torch.uint8, device=device.DEVICE)
        return functools.partial(torch.empty_like(source).copy_, source)


def kernels() -> list[Kernel]:
    words = reference.words(MAPS[-1])
    pixels, values = math.prod(MAPS[:-1]), math.prod(MAPS)
    maps = "x".join(map(str, MAPS))
    row = f"1x{FEATURES} -> {FEATURES}"
    weights = FEATURES * reference.words(FEATURES)
    packs = [
        Kernel(
            f"pack_{str(dtype)[6:]}",
            maps,
            "bits",
            dtype.itemsize * values,
            4 * words * pixels,
            functools.partial(_of_maps, "pack", functools.partial(_random_maps, dtype)),
        )
        for dtype in (torch.float32, torch.float16)
    ]
    fixed = {"channels": MAPS[-1], "dtype": torch.float16}
    unpack = functools.partial(_of_maps, "unpack", functools.partial(random_bits, *MAPS), **fixed)
    windows = {"kernel_size": (2, 2)}
    pool = functools.partial(
        _of_maps, "max_pool2d", functools.partial(random_bits, *MAPS), **windows
    )
    pooled = MAPS[0] * (MAPS[1] // 2) * (MAPS[2] // 2)
    return [
        *packs,
        Kernel("unpack_float16", maps, "float16", 4 * words * pixels, 2 * values, unpack),
        Kernel("max_pool2d_2x2", maps, "bits", 4 * words * pixels, 4 * words * pooled, pool),
        Kernel(
            "binary_weight_linear",
            row,
            "float16",
            4 * weights + 2 * FEATURES,
            2 * FEATURES,
            _binary_weight_linear,
        ),
    ]


def _random_maps(dtype: torch.dtype) -> Tensor:
    return torch.randn(MAPS, device=device.DEVICE).to(dtype)


def _of_maps(
    name: str, make: Callable[[], Tensor], **fixed: Any
) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """An operator whose result has an image for each of the input, and is exact."""
    input = make()
    images = spread(len(input), COMPARED_IMAGES)

    def check_result(result: Tensor) -> None:
        expected = getattr(reference, name)(input[images].cpu(), **fixed)
        expect_equal(result[images].cpu(), expected)

    return functools.partial(getattr(ops, name), input, **fixed), check_result


def _binary_weight_linear() -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """Sums of floats are rounded in another order than the reference's."""
    input = torch.randn(1, FEATURES, device=device.DEVICE).half()
    weight = random_bits(FEATURES, FEATURES)

    def check_result(result: Tensor) -> None:
        expected = reference.binary_weight_linear(input.cpu(), weight.cpu(), FEATURES)
        check("bnn_ext", result.cpu(), expected, ROUNDING)

    tiles = ops.tile_weight(weight)
    run = functools.partial(ops.binary_weight_linear, input, weight, FEATURES, tiles=tiles)
    return run, check_result


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    run = Run("stream", parser(__doc__).parse_args(arguments))
    for kernel in kernels():
        if run.has_time(kernel.what, kernel.shape):
            with run.problem(kernel.what, kernel.shape) as compare:
                compare(None, kernel.candidates())
    run.finish()


if __name__ == "__main__":
    main()
