"""Packed convolutions on a GPU, by each path, against cuDNN and torch.compile in fp16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bench_conv import Shape
from gpu import device
from gpu.operands import Part, expect_equal, random_bits, spread
from gpu.run import Candidate, Run, parser
from peers import ROUNDING, check
from torch import Tensor

from bnn_ext import ops, reference

SHAPES = {
    "resnet18": [
        Shape(64, 64, 56),
        Shape(64, 128, 56, stride=2),
        Shape(128, 128, 28),
        Shape(128, 256, 28, stride=2),
        Shape(256, 256, 14),
        Shape(256, 512, 14, stride=2),
        Shape(512, 512, 7),
        Shape(64, 128, 56, kernel=1, stride=2),
        Shape(128, 256, 28, kernel=1, stride=2),
        Shape(256, 512, 14, kernel=1, stride=2),
    ],
    "vgg": [
        Shape(128, 128, 32),
        Shape(128, 256, 16),
        Shape(256, 256, 16),
        Shape(256, 512, 8),
        Shape(512, 512, 8),
    ],
}
BATCHES = (256, 32, 1)
PATHS = ("auto", "popc", "mma", "wgmma")
COMPARED_IMAGES = 2


def name(shape: Shape) -> str:
    """What sort of convolution it is."""
    stride = f"_stride{shape.stride}" if shape.stride != 1 else ""
    return f"conv2d_{shape.kernel}x{shape.kernel}{stride}"


def out_size(shape: Shape) -> int:
    """Height and width of the output."""
    return (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1


class Operands(NamedTuple):
    """Arguments of the operators, or those that make a part of the result."""

    input: Tensor
    weight: Tensor
    channels: int
    stream: Tensor  # what a residual connection adds
    threshold: Tensor
    real_threshold: Tensor
    scale: Tensor
    bias: Tensor
    slope: Tensor


# Each by `library`, the operators or the reference.


def bits(library: Any, o: Operands, **fixed: Any) -> Tensor:
    return library.conv2d_bits(o.input, o.weight, o.channels, threshold=o.threshold, **fixed)


def int32(library: Any, o: Operands, **fixed: Any) -> Tensor:
    return library.conv2d(o.input, o.weight, o.channels, **fixed)


def float16(library: Any, o: Operands, **fixed: Any) -> Tensor:
    vectors = {"scale": o.scale, "bias": o.bias, "dtype": torch.float16}
    return library.conv2d_float(o.input, o.weight, o.channels, **vectors, **fixed)


def residual(library: Any, o: Operands, **fixed: Any) -> tuple[Tensor, Tensor]:
    """The end of a residual block: the stream in float16, and the next layer's input as bits."""
    steps = [("multiply", o.scale), ("add", o.bias), ("add", o.stream), ("prelu", o.slope)]
    ends = {"steps": steps, "dtype": torch.float16, "threshold": o.real_threshold}
    return library.conv2d_fused(o.input, o.weight, o.channels, **ends, **fixed)


OUTPUTS = {"bits": bits, "int32": int32, "float16": float16, "residual": residual}


def moved_bytes(shape: Shape, batch: int, output: str) -> int:
    """Of the packed operands, the stream and the results."""
    words = reference.words(shape.in_channels)
    result = {
        "bits": 4 * reference.words(shape.out_channels),
        "float16": 2 * shape.out_channels,
        "int32": 4 * shape.out_channels,
    }
    result["residual"] = 2 * result["float16"] + result["bits"]  # the stream is also read
    pixels = batch * shape.size**2
    weights = shape.out_channels * shape.kernel**2
    return 4 * (pixels + weights) * words + batch * out_size(shape) ** 2 * result[output]


class Problem:
    """Random packed operands, and the images and channels whose results are compared."""

    def __init__(self, shape: Shape, batch: int) -> None:
        assert shape.groups == 1, "channels of a group need other inputs than those of the next"
        self.shape, self.batch = shape, batch
        channels, size = shape.out_channels, out_size(shape)
        self.geometry = {"stride": (shape.stride,) * 2, "padding": (shape.padding,) * 2}
        where = device.DEVICE
        self.operands = Operands(
            random_bits(batch, shape.size, shape.size, shape.in_channels),
            random_bits(channels, shape.kernel, shape.kernel, shape.in_channels),
            shape.in_channels,
            torch.randn(batch, size, size, channels, dtype=torch.float16, device=where),
            torch.randint(-9, 10, (channels,), dtype=torch.int32, device=where),
            *torch.rand(4, channels, device=where),
        )
        self.fixed = self.geometry | {"tiles": ops.tile_weight(self.operands.weight)}
        self.part = Part(channels)
        self.images = spread(batch, COMPARED_IMAGES)
        input, weight, _, stream, *vectors = self.operands
        self.compared = Operands(
            input[self.images].cpu(),
            self.part.of(weight),
            shape.in_channels,
            self.part.of_result(stream[self.images], False),
            *map(self.part.of, vectors),
        )

    @property
    def macs(self) -> int:
        return self.batch * self.shape.macs

    def ours(self) -> list[Candidate]:
        """By each path to bits; to other results by the path that is chosen."""
        kinds = [("bits", path) for path in PATHS]
        kinds += [(output, "auto") for output in OUTPUTS if output != "bits"]
        return [
            Candidate(
                f"bnn_ext {path}",
                output,
                functools.partial(self._prepare, output),
                moved_bytes(self.shape, self.batch, output),
                path,
            )
            for output, path in kinds
        ]

    def _prepare(self, output: str) -> Callable[[], object]:
        run = functools.partial(OUTPUTS[output], ops, self.operands, **self.fixed)
        expected = OUTPUTS[output](reference, self.compared, **self.geometry)
        if output == "residual":
            for found, part, are_bits in zip(run(), expected, (False, True), strict=True):
                expect_equal(self.part.of_result(found[self.images], are_bits), part)
        else:
            found = self.part.of_result(run()[self.images], output == "bits")
            expect_equal(found, expected)
        return run

    def peers(self) -> list[Candidate]:
        return [
            Candidate("cuDNN fp16 NHWC", "float16", self._cudnn),
            Candidate("torch.compile fp16 NHWC", "float16", self._compiled),
        ]

    def _signs(self) -> tuple[Tensor, Tensor]:
        """Map and weight as ±1 in fp16, in torch's order of sizes; channels last in memory."""
        o = self.operands
        input, weight = (
            ops.unpack(packed, o.channels, torch.float16).permute(0, 3, 1, 2)
            for packed in (o.input, o.weight)
        )
        return input, weight

    def _checked(
        self, name: str, run: Callable[[], Tensor], expected: Tensor
    ) -> Callable[[], Tensor]:
        result = run().permute(0, 2, 3, 1)[self.images]
        check(name, self.part.of_result(result, False), expected, ROUNDING)
        return run

    def _cudnn(self) -> Callable[[], Tensor]:
        """The sums alone: no scale, no threshold."""
        run = functools.partial(F.conv2d, *self._signs(), **self.geometry)
        return self._checked("cuDNN", run, int32(reference, self.compared, **self.geometry))

    def _compiled(self) -> Callable[[], Tensor]:
        """The layer up to the next one's input: sums, and ±1 by the threshold of each channel."""
        # Between two integers, so that a rounding, as of Winograd's algorithm, moves no sign.
        threshold = (self.operands.threshold - 0.5).half().view(-1, 1, 1)

        def layer(input: Tensor, weight: Tensor) -> Tensor:
            sums = F.conv2d(input, weight, **self.geometry)
            return torch.where(sums >= threshold, 1.0, -1.0).half()

        run = functools.partial(torch.compile(layer, dynamic=False), *self._signs())
        packed = bits(reference, self.compared, **self.geometry)
        expected = reference.unpack(packed, len(self.part.channels))
        return self._checked("torch.compile", run, expected)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    options.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="(256 32 1, the most telling first)"
    )
    chosen = options.parse_args(arguments)
    run = Run("conv", chosen)
    for batch in chosen.batches:
        for shape in (shape for kind in chosen.shapes for shape in SHAPES[kind]):
            what, size = name(shape), shape.name(batch)
            if run.has_time(what, size):
                with run.problem(what, size) as compare:
                    problem = Problem(shape, batch)
                    compare(problem.macs, problem.ours() + problem.peers())
    run.finish()


if __name__ == "__main__":
    main()
