"""Packed convolutions against the register peak and against the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import openvino_binary
import torch
from peers import Peers, Work, float_peers
from run import Run, add_device, on_cuda, parser
from timing import Implementation, at_levels, register_peak
from torch import Tensor, nn

from bnn_ext import ops, reference


class Shape(NamedTuple):
    """One convolution; `padding` keeps the size at stride 1."""

    in_channels: int
    out_channels: int
    size: int  # height and width of the input
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def macs(self) -> int:
        """Of one image, without the products that meet the padding."""
        starts = range(-self.padding, self.size + self.padding - self.kernel + 1, self.stride)
        taps = sum(min(i + self.kernel, self.size) - max(i, 0) for i in starts)
        return taps**2 * self.in_channels // self.groups * self.out_channels

    def name(self, batch: int) -> str:
        """The input as NxCxHxW, and the output's channels where they are others."""
        shape = f"{batch}x{self.in_channels}x{self.size}x{self.size}"
        same = self.in_channels == self.out_channels
        return shape if same else f"{shape} -> {self.out_channels}"


STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # of a ResNet: channels, height and width
SHAPES = {
    "3x3": [Shape(c, c, size) for c, size in STAGES],
    "stride2": [Shape(c, c, size, stride=2) for c, size in STAGES],
    "groups2": [Shape(c, c, size, groups=2) for c, size in STAGES],
    "1x1": [Shape(256, 512, 14, kernel=1)],
    "5x5": [Shape(64, 64, 28, kernel=5), Shape(256, 256, 14, kernel=5)],
    "7x7": [Shape(64, 64, 28, kernel=7), Shape(256, 256, 14, kernel=7)],
    "few_channels": [Shape(c, 64, 32) for c in (1, 3, 8, 16, 24)],
}


class Problem:
    """Random signs: as floats, NCHW, and packed, NHWC."""

    def __init__(self, shape: Shape, batch: int) -> None:
        self.shape = shape
        self.macs = batch * shape.macs
        self.geometry = {
            "stride": shape.stride,
            "padding": shape.padding,
            "groups": shape.groups,
        }
        self.x = reference.sign(torch.randn(batch, shape.in_channels, shape.size, shape.size))
        self.conv = nn.Conv2d(
            shape.in_channels, shape.out_channels, shape.kernel, bias=False, **self.geometry
        )
        self.conv.weight.data = reference.sign(self.conv.weight)
        self.packed_x = ops.pack(self.x.permute(0, 2, 3, 1))
        self.packed_weight = ops.pack(self.conv.weight.permute(0, 2, 3, 1))
        self.threshold = torch.randint(-5, 5, (shape.out_channels,), dtype=torch.int32)
        self.arguments = (self.packed_x, self.packed_weight, shape.in_channels)
        self.fixed = {"tiles": ops.tile_weight(self.packed_weight, shape.groups)} | self.geometry


def bits(problem: Problem) -> Callable[[], Tensor]:
    fixed = {"threshold": problem.threshold} | problem.fixed
    return functools.partial(ops.conv2d_bits, *problem.arguments, **fixed)


def int32(problem: Problem) -> Callable[[], Tensor]:
    return functools.partial(ops.conv2d, *problem.arguments, **problem.fixed)


def float32(problem: Problem) -> Callable[[], Tensor]:
    scale, bias = torch.rand(2, problem.shape.out_channels)
    fixed = {"scale": scale, "bias": bias} | problem.fixed
    return functools.partial(ops.conv2d_float, *problem.arguments, **fixed)


def residual(problem: Problem) -> Callable[[], object]:
    """The end of a residual block: the stream in float32, and the next layer's input as bits."""
    scale, bias, slope, threshold = torch.rand(4, problem.shape.out_channels)
    stream = torch.randn(float32(problem)().shape)
    fixed = {
        "steps": [("multiply", scale), ("add", bias), ("add", stream), ("prelu", slope)],
        "threshold": threshold,
    } | problem.fixed
    return functools.partial(ops.conv2d_fused, *problem.arguments, **fixed)


OUTPUTS = {"bits": bits, "int32": int32, "float32": float32, "residual": residual}


def packed(problem: Problem, levels: Sequence[str], outputs: Sequence[str]) -> list[Implementation]:
    """Our operators, with their weights tiled beforehand as in a converted network."""
    implementations = []
    for output in outputs:
        run = OUTPUTS[output](problem)
        results = run()
        written = sum(r.nbytes for r in (results if isinstance(results, tuple) else (results,)))
        bytes = problem.packed_x.nbytes + problem.packed_weight.nbytes + written
        implementations += at_levels(levels, run, output, problem.macs, bytes)
    return implementations


def in_a_network(problem: Problem, level: str) -> Implementation:
    """Four such layers in one call, each with weights of its own, as a converted network runs them.

    A call from Python costs as much as a tenth of a layer. OpenVINO's layers, too, are timed as
    parts of a graph. Each reads what the one before it wrote, if its shape allows.
    """
    shape = problem.shape
    stacked = shape.out_channels == shape.in_channels and shape.stride == 1
    input, calls = "input", []
    for layer in range(openvino_binary.DEPTH):
        weights = {
            "weight": problem.packed_weight.clone(),
            "tiles": problem.fixed["tiles"].clone(),
            "threshold": problem.threshold,
        }
        arguments = {"input": input, "in_channels": shape.in_channels} | weights | problem.geometry
        calls.append(ops.Call("conv2d_bits", arguments, (f"bits{layer}",)))
        input = f"bits{layer}" if stacked else input
    run = functools.partial(
        ops.Sequence(["input"], calls, [calls[-1].results[0]]), [problem.packed_x]
    )
    bytes = problem.packed_x.nbytes + problem.packed_weight.nbytes + run()[0].nbytes
    depth = len(calls)
    return Implementation(
        f"bnn_ext sequence of {depth}",
        "bits",
        run,
        problem.macs * depth,
        bytes * depth,
        level,
        register_peak(level),
    )


def peers(problem: Problem, threads: int) -> Peers:
    weight = problem.conv.weight.detach()
    sums = ops.conv2d(*problem.arguments, **problem.fixed).permute(0, 3, 1, 2)
    binary = functools.partial(
        openvino_binary.layer,
        problem.x,
        weight,
        problem.threshold,
        problem.macs,
        threads,
        **problem.geometry,
    )
    work = Work(problem.conv, problem.x, problem.macs, threads, sums)
    return {"OpenVINO binary": binary} | float_peers(work)


def main(arguments: Sequence[str] | None = None) -> None:
    if on_cuda(arguments):
        from gpu import conv  # which needs this module's shapes

        return conv.main(arguments)
    return on_cpu(arguments)


@torch.no_grad()
def on_cpu(arguments: Sequence[str] | None) -> None:
    options = parser(__doc__, rounds=50)
    add_device(options)
    options.add_argument("--batch", type=int, default=1, help="images in a call (1)")
    options.add_argument("--shapes", nargs="+", choices=["all", *SHAPES], default=["3x3"])
    options.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=[*OUTPUTS])
    chosen = options.parse_args(arguments)
    run = Run(chosen)
    for kind in SHAPES if "all" in chosen.shapes else chosen.shapes:
        for shape in SHAPES[kind]:
            problem = Problem(shape, chosen.batch)
            ours = packed(problem, run.levels, chosen.outputs)
            if "bits" in chosen.outputs:
                ours.append(in_a_network(problem, run.levels[0]))
            run.compare(
                f"conv2d_{kind}", shape.name(chosen.batch), ours, peers(problem, chosen.threads)
            )
        run.write(f"conv2d_{kind}_batch{chosen.batch}_threads{chosen.threads}")


if __name__ == "__main__":
    main()
