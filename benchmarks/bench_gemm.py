"""Packed linear layers: products of two matrices, and of a vector and a matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import openvino_binary
import torch
from peers import Peers, Work, float_peers, torch_int8
from run import Run, add_device, on_cuda, parser
from timing import Implementation, at_levels
from torch import Tensor, nn

from bnn_ext import ops, reference


class Shape(NamedTuple):
    """`rows` inputs to one layer."""

    rows: int
    in_features: int
    out_features: int

    @property
    def macs(self) -> int:
        return self.rows * self.in_features * self.out_features

    def __str__(self) -> str:
        return f"{self.rows}x{self.in_features} -> {self.out_features}"


SHAPES = {
    "gemm": [Shape(1536, 1024, 1536), Shape(1536, 4608, 1536)],
    "gemv": [Shape(1, 8192, 1024)],
}


class Problem:
    """Random signs: as floats and packed."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.x = reference.sign(torch.randn(shape.rows, shape.in_features))
        self.linear = nn.Linear(shape.in_features, shape.out_features, bias=False)
        self.linear.weight.data = reference.sign(torch.randn_like(self.linear.weight))
        self.packed_x = ops.pack(self.x)
        self.packed_weight = ops.pack(self.linear.weight)

    def sums(self) -> Callable[[], Tensor]:
        """The weight is tiled beforehand, as in a converted network."""
        operands = (self.packed_x, self.packed_weight, self.shape.in_features)
        return functools.partial(ops.linear, *operands, tiles=ops.tile_weight(self.packed_weight))


def packed(problem: Problem, levels: Sequence[str]) -> list[Implementation]:
    run = problem.sums()
    bytes = problem.packed_x.nbytes + problem.packed_weight.nbytes + run().nbytes
    return at_levels(levels, run, "int32", problem.shape.macs, bytes)


def peers(problem: Problem, threads: int) -> Peers:
    work = Work(problem.linear, problem.x, problem.shape.macs, threads, problem.sums()())
    # For OpenVINO the rows are the pixels of a map, and the layer a 1x1 convolution.
    pixels = problem.x.t().reshape(1, problem.shape.in_features, 1, problem.shape.rows)
    weight = problem.linear.weight.detach()[:, :, None, None]
    binary = functools.partial(
        openvino_binary.layer, pixels, weight, None, problem.shape.macs, threads
    )
    integers = functools.partial(torch_int8, work)
    return {"OpenVINO binary": binary, "torch int8 _int_mm": integers} | float_peers(work)


def main(arguments: Sequence[str] | None = None) -> None:
    if on_cuda(arguments):
        from gpu import gemm  # which needs this module's shapes

        return gemm.main(arguments)
    return on_cpu(arguments)


@torch.no_grad()
def on_cpu(arguments: Sequence[str] | None) -> None:
    options = parser(__doc__, rounds=20)
    add_device(options)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for kind in chosen.shapes:
        for shape in SHAPES[kind]:
            problem = Problem(shape)
            ours = packed(problem, run.levels)
            run.compare(kind, str(shape), ours, peers(problem, chosen.threads))
        run.write(f"{kind}_threads{chosen.threads}")


if __name__ == "__main__":
    main()
