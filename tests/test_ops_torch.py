"""The operators as citizens of torch: registration, fake kernels, compile, autograd, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from packed_inputs import (
    examples,
    map_tensors,
    random_affine,
    random_packed,
    random_thresholds,
)
from torch import Tensor

from bnn_ext import ops, reference

OPERATORS = tuple(examples())
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# What the examples leave out: other dtypes, layouts and ranks, omitted arguments, empty tensors.
MORE = [
    *(
        ("pack", {"input": torch.ones(3, 40, dtype=t), "threshold": None, "flip": None})
        for t in FLOATS
    ),
    ("pack", {"input": torch.ones(2, 40, 5, 4).permute(0, 2, 3, 1), "flip": None}),
    ("pack", {"input": torch.ones(40)}),
    ("pack", {"input": torch.ones(0, 40)}),
    ("pack", {"input": torch.ones(2, 0), "threshold": None, "flip": None}),
    ("pack", {"input": torch.ones(3, 40, dtype=torch.int32), "threshold": torch.arange(40).int()}),
    ("pack", {"input": torch.ones(3, 40, requires_grad=True)}),
    *(("unpack", {"dtype": t}) for t in (torch.float16, torch.bfloat16, torch.int32, torch.int8)),
    ("unpack", {"packed": random_packed(0, 40)}),
    ("flatten", {"packed": random_packed(0, 2, 3, 40)}),
    ("flatten", {"packed": random_packed(3, 40)}),
    ("select_channels", {"inputs": [random_packed(40), random_packed(70)]}),
    ("select_channels", {"inputs": [random_packed(0, 2, 40), random_packed(0, 2, 70)]}),
    ("select_channels", {"index": torch.arange(0, dtype=torch.int32)}),
    ("tile_weight", {"weight": random_packed(33, 70), "groups": 1}),
    *(
        (op, wrong)
        for op in ("linear", "linear_float", "linear_bits")
        for wrong in (
            {"tiles": None},
            {"input": random_packed(2, 1, 3, 70)},
            {"input": random_packed(70)},
            {"input": random_packed(0, 70)},
        )
    ),
    ("linear_float", {"scale": None}),
    ("linear_float", {"bias": None, "dtype": torch.bfloat16}),
    ("linear_float", {"scale": None, "bias": None, "dtype": torch.float32}),
    ("linear_bits", {"flip": None}),
    *(
        (op, wrong)
        for op in ("conv2d", "conv2d_float", "conv2d_bits")
        for wrong in (
            {"tiles": None},
            {"pad_value": -1},
            {"input": random_packed(0, 6, 7, 165)},
            {"input": random_packed(2, 7, 6, 165).transpose(1, 2)},
        )
    ),
    ("conv2d_float", {"scale": None, "bias": None, "dtype": torch.float32}),
    ("conv2d_bits", {"flip": None}),
    *(
        (op, wrong)
        for op in ("binary_weight_linear", "binary_weight_linear_bits")
        for wrong in (
            {"tiles": None},
            {"input": torch.ones(2, 1, 3, 70).bfloat16()},
            {"input": torch.ones(70, 2).half().T},
            {"input": torch.ones(0, 70)},
        )
    ),
    *(
        (op, wrong)
        for op in ("binary_weight_conv2d", "binary_weight_conv2d_bits")
        for wrong in (
            {"tiles": None},
            {"pad_value": -1},
            {"input": torch.ones(0, 165, 6, 7)},
            {"input": torch.ones(2, 165, 6, 7).to(memory_format=torch.channels_last).bfloat16()},
        )
    ),
    ("binary_weight_linear", {"input": torch.ones(2, 70).byte(), "scale": None, "bias": None}),
    (
        "binary_weight_conv2d",
        {"input": torch.ones(2, 165, 6, 7).byte(), "scale": None, "bias": None},
    ),
    (
        "binary_weight_linear_bits",
        {"input": torch.ones(2, 70).byte(), "threshold": torch.arange(5).int(), "flip": None},
    ),
    (
        "binary_weight_conv2d_bits",
        {"input": torch.ones(2, 165, 6, 7).byte(), "threshold": torch.arange(5).int()},
    ),
    ("max_pool2d", {"minimum": None, "ceil_mode": False}),
    ("max_pool2d", {"input": random_packed(0, 6, 7, 70)}),
    *(
        (op, {"input": other})
        for op in ("max_pool2d_float", "avg_pool2d", "global_avg_pool2d")
        for other in (torch.ones(0, 6, 7, 70), torch.ones(2, 70, 6, 7).permute(0, 2, 3, 1))
    ),
    ("avg_pool2d", {"count_include_pad": True, "divisor_override": None}),
]


def packed_operator(op: str) -> Any:
    return getattr(torch.ops.bnn_ext, op).default


# --- registration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op):
    torch.library.opcheck(packed_operator(op), (), examples()[op])


@pytest.mark.parametrize(("op", "other"), MORE)
def test_opcheck_of_other_arguments(op, other):
    torch.library.opcheck(packed_operator(op), (), examples()[op] | other)


@pytest.mark.parametrize(("op", "other"), [*((op, {}) for op in OPERATORS), *MORE])
def test_meta_tensors_give_the_shapes_and_dtypes(op, other):
    arguments = examples()[op] | other
    actual = getattr(ops, op)(**arguments)
    meta = map_tensors(lambda tensor: tensor.to("meta"), arguments)
    shape = getattr(ops, op)(**meta)
    assert shape.is_meta
    assert (shape.shape, shape.dtype) == (actual.shape, actual.dtype)
    assert shape.stride() == actual.stride()


# --- torch.compile --------------------------------------------------------------------------------


def make_network() -> tuple[Any, Any]:
    """A small packed network of every kind of operator: on the operators, and on the reference."""
    kernel, weight = random_packed(40, 3, 3, 33), random_packed(7, 3 * 4 * 40)
    tiles = ops.tile_weight(kernel)
    threshold, flip = random_thresholds(40, 9 * 33)
    scale, bias = random_affine(7)

    def network(x: Tensor) -> Tensor:
        bits = ops.pack(x.permute(0, 2, 3, 1))
        bits = ops.conv2d_bits(
            bits, kernel, 33, padding=1, threshold=threshold, flip=flip, tiles=tiles
        )
        bits = ops.flatten(ops.max_pool2d(bits, 2), 40)
        return ops.linear_float(bits, weight, 3 * 4 * 40, scale, bias)

    def expected(x: Tensor) -> Tensor:
        bits = reference.pack(x.permute(0, 2, 3, 1))
        conv = {"padding": (1, 1), "threshold": threshold, "flip": flip}
        bits = reference.conv2d_bits(bits, kernel, 33, **conv)
        bits = reference.flatten(reference.max_pool2d(bits, (2, 2)), 40)
        return reference.linear_float(bits, weight, 3 * 4 * 40, scale, bias)

    return network, expected


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_compiled_graph_serves_every_batch(backend):
    network, expected = make_network()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = torch.randn(9, 33, 6, 8)
    first = x[:3].clone()
    torch._dynamo.mark_dynamic(first, 0)  # fails if an operator fixes the batch
    assert torch.equal(compiled(first), expected(first))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (2, 5, 9):
            assert torch.equal(compiled(x[:batch]), expected(x[:batch]))


# --- autograd -------------------------------------------------------------------------------------


def test_bits_carry_no_gradient():
    x = torch.randn(3, 40, requires_grad=True)
    assert not ops.pack(x).requires_grad
    assert torch.equal(ops.pack(x), reference.pack(x))
    assert not ops.unpack(ops.pack(x), 40).requires_grad


# --- threads --------------------------------------------------------------------------------------


def test_two_threads_give_the_bits_of_one(two_threads):
    wide, maps = random_packed(300, 1000), random_packed(2, 30, 29, 100)
    conv = {"input": maps, "weight": random_packed(70, 3, 3, 100), "in_channels": 100}
    conv["padding"] = (1, 1)
    affine = dict(zip(("scale", "bias"), random_affine(70), strict=True))
    bits = dict(zip(("threshold", "flip"), random_thresholds(70, 900), strict=True))
    large: dict[str, dict[str, Any]] = {  # enough work for a second thread
        "pack": {"input": torch.randn(3, 70, 40, 50).permute(0, 2, 3, 1)},
        "unpack": {"packed": wide, "channels": 1000},
        "flatten": {"packed": random_packed(300, 5, 5, 100), "channels": 100},
        "select_channels": {
            "inputs": [maps, random_packed(2, 30, 29, 70)],
            "channels": [100, 70],
            "index": torch.cat((torch.arange(150), torch.randperm(170))).int(),
        },
        "linear": {"input": wide, "weight": random_packed(130, 1000), "in_features": 1000},
        "conv2d": conv,
        "conv2d_float": conv | affine,
        "conv2d_bits": conv | {"weight": random_packed(70, 3, 3, 50), "groups": 2} | bits,
        "max_pool2d": {"input": maps, "kernel_size": (3, 3), "stride": (1, 1)},
        "max_pool2d_float": {
            "input": torch.randn(2, 30, 29, 40),
            "kernel_size": (3, 3),
            "stride": (1, 1),
        },
        "avg_pool2d": {
            "input": torch.randn(2, 30, 29, 40),
            "kernel_size": (3, 3),
            "stride": (1, 1),
        },
        "global_avg_pool2d": {"input": torch.randn(2, 30, 29, 40)},
        "binary_weight_linear": {
            "input": torch.randint(256, (40, 1000), dtype=torch.uint8),
            "weight": random_packed(130, 1000),
            "in_features": 1000,
        },
        "binary_weight_conv2d_bits": {
            "input": torch.randint(256, (2, 24, 40, 50), dtype=torch.uint8),
            "weight": random_packed(70, 3, 3, 24),
            "in_channels": 24,
            "threshold": bits["threshold"],
        },
    }
    for op, arguments in large.items():
        torch.set_num_threads(2)
        two = getattr(ops, op)(**arguments)
        torch.set_num_threads(1)
        assert torch.equal(getattr(ops, op)(**arguments), two), op
        assert torch.equal(getattr(reference, op)(**arguments), two), op


def test_calls_from_several_python_threads_at_once():
    problems = [(random_packed(40, 500 + i), random_packed(70, 500 + i), 500 + i) for i in range(8)]
    expected = [reference.linear(*problem) for problem in problems]

    def repeat(i: int) -> bool:
        return all(torch.equal(ops.linear(*problems[i]), expected[i]) for _ in range(50))

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert all(pool.map(repeat, range(len(problems))))
