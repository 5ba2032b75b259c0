"""Packed linear layers on a GPU, by each path, against torch in bf16, int8 and fp8."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from bench_gemm import Shape
from gpu import device
from gpu.operands import Part, expect_equal, random_bits, spread
from gpu.run import Candidate, Run, parser
from peers import ROUNDING, check
from torch import Tensor

from bnn_ext import ops, reference

SHAPES = {
    "gemm": [Shape(size, size, size) for size in (1024, 2048, 4096, 8192, 16384, 32768)],
    "gemv": [Shape(rows, size, size) for size in (4096, 8192) for rows in (1, 8)],
}
PATHS = {
    "gemm": ("auto", "popc", "mma", "wgmma"),
    "gemv": ("auto", "popc", "gemv", "mma", "wgmma"),
}
COMPARED_ROWS = 64


class Operands(NamedTuple):
    """Arguments of the operators, or those that make a part of the result."""

    input: Tensor
    weight: Tensor
    features: int
    threshold: Tensor
    scale: Tensor
    bias: Tensor


# Each by `library`, the operators or the reference.


def int32(library: Any, o: Operands, **tiles: Tensor) -> Tensor:
    return library.linear(o.input, o.weight, o.features, **tiles)


def float16(library: Any, o: Operands, **tiles: Tensor) -> Tensor:
    kind = torch.float16
    return library.linear_float(o.input, o.weight, o.features, o.scale, o.bias, kind, **tiles)


def bits(library: Any, o: Operands, **tiles: Tensor) -> Tensor:
    return library.linear_bits(o.input, o.weight, o.features, o.threshold, **tiles)


OUTPUTS = {"bits": bits, "float16": float16, "int32": int32}


def moved_bytes(shape: Shape, output: str) -> int:
    """Of the packed operands and the result."""
    words = reference.words(shape.in_features)
    result = {
        "bits": 4 * reference.words(shape.out_features),
        "float16": 2 * shape.out_features,
        "int32": 4 * shape.out_features,
    }
    return 4 * (shape.rows + shape.out_features) * words + shape.rows * result[output]


class Problem:
    """Random packed operands, and the rows and channels whose results are compared."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        channels, where = shape.out_features, device.DEVICE
        self.operands = Operands(
            random_bits(shape.rows, shape.in_features),
            random_bits(channels, shape.in_features),
            shape.in_features,
            torch.randint(-9, 10, (channels,), dtype=torch.int32, device=where),
            torch.rand(channels, device=where),
            torch.rand(channels, device=where),
        )
        self.tiles = ops.tile_weight(self.operands.weight)
        self.part = Part(channels)
        self.rows = spread(shape.rows, COMPARED_ROWS)
        input, weight, _, *vectors = self.operands
        self.compared = Operands(
            input[self.rows].cpu(),
            self.part.of(weight),
            shape.in_features,
            *map(self.part.of, vectors),
        )
        self.sums = int32(reference, self.compared)

    def ours(self, paths: Sequence[str]) -> list[Candidate]:
        return [
            Candidate(
                f"bnn_ext {path}",
                output,
                functools.partial(self._prepare, output),
                moved_bytes(self.shape, output),
                path,
            )
            for output in OUTPUTS
            for path in paths
        ]

    def _prepare(self, output: str) -> Callable[[], object]:
        run = functools.partial(OUTPUTS[output], ops, self.operands, tiles=self.tiles)
        found = self.part.of_result(run()[self.rows], output == "bits")
        expect_equal(found, OUTPUTS[output](reference, self.compared))
        return run

    def peers(self) -> list[Candidate]:
        return [
            Candidate("torch bf16", "bfloat16", self._bf16),
            Candidate("torch int8 _int_mm", "int32", self._int8),
            Candidate("torch fp8 _scaled_mm", "bfloat16", self._fp8),
        ]

    def _signs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both operands as ±1, the weight transposed in place."""
        o = self.operands
        input, weight = (ops.unpack(packed, o.features, dtype) for packed in (o.input, o.weight))
        return input, weight.t()

    def _checked(
        self, name: str, run: Callable[[], Tensor], tolerance: float
    ) -> Callable[[], Tensor]:
        check(name, self.part.of_result(run()[self.rows], False), self.sums, tolerance)
        return run

    def _bf16(self) -> Callable[[], Tensor]:
        run = functools.partial(torch.mm, *self._signs(torch.bfloat16))
        return self._checked("torch bf16", run, ROUNDING)

    def _int8(self) -> Callable[[], Tensor]:
        run = functools.partial(torch._int_mm, *self._signs(torch.int8))
        return self._checked("torch int8", run, 0.0)

    def _fp8(self) -> Callable[[], Tensor]:
        input, weight = (x.to(torch.float8_e4m3fn) for x in self._signs(torch.bfloat16))
        one = torch.ones((), device=device.DEVICE)
        fixed = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        run = functools.partial(torch._scaled_mm, input, weight, **fixed, use_fast_accum=True)
        return self._checked("torch fp8", run, ROUNDING)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    chosen = options.parse_args(arguments)
    run = Run("gemm", chosen)
    for kind in chosen.shapes:
        for shape in SHAPES[kind]:
            if run.has_time(kind, str(shape)):
                with run.problem(kind, str(shape)) as compare:
                    problem = Problem(shape)
                    compare(shape.macs, problem.ours(PATHS[kind]) + problem.peers())
    run.finish()


if __name__ == "__main__":
    main()
