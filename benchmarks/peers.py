"""The peers: what else can do the same work on this machine, as fast as its makers allow.

Each function prepares one peer, checks its result, and returns it as `Implementation`s. It imports
what it needs itself, so that a package that is not installed keeps out only its own peers;
`Missing` says what else does. OpenVINO's binary kernels are in `openvino_binary`.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timing import Implementation
from torch import Tensor, nn

Peers = Mapping[str, Callable[[], Sequence[Implementation]]]

ROUNDING = 0.01  # of the output's norm: bfloat16 has 8 bits, Winograd's algorithm its own errors


class Missing(Exception):
    """A peer cannot do this work here; says why."""


class Work(NamedTuple):
    """What the peers on real numbers compute: `module(x)`."""

    module: nn.Module
    x: Tensor
    macs: int
    threads: int
    expected: Tensor


def check(name: str, output: Any, expected: Tensor, tolerance: float = 0.0) -> None:
    """Fails if `output` is off by more than `tolerance` of the norm of what is expected.

    Where fewer rows are expected than there are, the first ones count.
    """
    output = torch.as_tensor(output)[: len(expected)]
    error = (output.double() - expected).norm() / expected.double().norm()
    assert error <= tolerance, f"{name} is wrong by {error:.1%} of the output's norm"


def float_peers(work: Work) -> dict[str, Callable[[], list[Implementation]]]:
    """Everything that runs an ordinary module on floats."""
    return {
        "torch float32": functools.partial(torch_module, work, torch.float32),
        "torch bfloat16": functools.partial(torch_module, work, torch.bfloat16),
        "OpenVINO float32": functools.partial(openvino_module, work),
        "onnxruntime float32": functools.partial(onnxruntime_module, work),
    }


# --- torch ----------------------------------------------------------------------------------------


def torch_module(work: Work, dtype: torch.dtype) -> list[Implementation]:
    """The module in `dtype`; on maps in both memory formats."""
    kind = str(dtype).removeprefix("torch.")
    formats = {f"torch {kind}": torch.preserve_format}
    if work.x.dim() == 4:
        formats = {
            f"torch {kind} NCHW": torch.contiguous_format,
            f"torch {kind} NHWC": torch.channels_last,
        }
    implementations = []
    for name, memory_format in formats.items():
        module = copy.deepcopy(work.module).to(dtype=dtype, memory_format=memory_format)
        x = work.x.to(dtype=dtype, memory_format=memory_format)
        run = functools.partial(module, x)
        # A sign in between makes a whole network of a rounding.
        if dtype == torch.float32 or not isinstance(module, nn.Sequential):
            check(name, run(), work.expected, ROUNDING)
        implementations.append(Implementation(name, kind, run, work.macs))
    return implementations


def torch_int8(work: Work) -> list[Implementation]:
    """A linear layer of ±1 in int8, the weight transposed in place, which is the faster way."""
    x, weight = work.x.to(torch.int8), work.module.weight.detach().to(torch.int8)
    run = functools.partial(torch._int_mm, x, weight.t())
    check("torch int8", run(), work.expected)
    return [Implementation("torch int8 _int_mm", "int32", run, work.macs)]


# --- OpenVINO and onnxruntime ---------------------------------------------------------------------


class OpenvinoRequest:
    """A compiled OpenVINO model with its input; calling it infers and gives the first output."""

    def __init__(self, model: Any, x: Tensor, threads: int, *, profile: bool = False) -> None:
        import openvino

        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "PERF_COUNT": profile,
        }
        self.request = openvino.compile_model(model, "CPU", config).create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(x.contiguous().numpy()))

    def __call__(self) -> Any:
        return self.request.infer(share_outputs=True)[0]


def openvino_module(work: Work) -> list[Implementation]:
    """The module as OpenVINO's PyTorch frontend reads it."""
    import openvino

    shape = [list(work.x.shape)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own tracing
        model = openvino.convert_model(work.module, example_input=work.x, input=shape)
    run = OpenvinoRequest(model, work.x, work.threads)
    check("OpenVINO float32", run(), work.expected, ROUNDING)
    return [Implementation("OpenVINO float32", "float32", run, work.macs)]


def onnxruntime_module(work: Work) -> list[Implementation]:
    """The module as torch exports it to ONNX."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own tracing
        program = torch.onnx.export(work.module, (work.x,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    inputs = {session.get_inputs()[0].name: work.x.contiguous().numpy()}
    run = functools.partial(session.run, None, inputs)
    check("onnxruntime float32", run()[0], work.expected, ROUNDING)
    return [Implementation("onnxruntime float32", "float32", run, work.macs)]
