"""Wrong arguments: a TypeError or ValueError that names the argument, and never a crash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packed_inputs import examples, map_tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from bnn_ext import _extension, ops

OPERATORS = tuple(examples())

# Tensors of any rank, and those whose last dimension fixes what others must match.
ANY_RANK = {("pack", "input"), ("unpack", "packed"), ("flatten", "packed")} | {
    (op, "input")
    for op in ("linear", "linear_float", "linear_bits")
    + ("binary_weight_linear", "binary_weight_linear_bits")
}
ANY_LENGTH = {
    ("pack", "input"),
    ("select_channels", "index"),
    ("tile_weight", "weight"),
    *((op, "input") for op in ("max_pool2d", "max_pool2d_float", "avg_pool2d")),
    ("global_avg_pool2d", "input"),
    ("binary_weight_conv2d", "input"),
    ("binary_weight_conv2d_bits", "input"),
}


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


Case = tuple[str, dict[str, Any], type[Exception], str]  # operator, what to replace, error, name


def wrong_tensors() -> Iterator[Case]:
    """Every tensor of every operator, replaced by what it must not be."""
    for op, arguments in examples().items():
        tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
        for name in tensors:
            value = arguments[name]
            for wrong in ([1.0, 2.0], value.double(), value.long()):
                yield op, {name: wrong}, TypeError, name
            shapes = [value.flatten()[0]]
            if (op, name) not in ANY_RANK:
                shapes.append(value[None])
            if (op, name) not in ANY_LENGTH:
                shapes += [value[..., :-1], torch.cat((value, value[..., :1]), -1)]
            if name != tensors[0]:
                shapes.append(value.to("meta"))  # another device than the first tensor's
            for wrong in shapes:
                yield op, {name: wrong}, ValueError, name


def wrong_numbers() -> Iterator[Case]:
    """Every number and pair of numbers of every operator, likewise."""
    least = {"pad_value": -1}
    least |= dict.fromkeys(("stride", "dilation", "kernel_size", "groups", "divisor_override"), 1)
    has_default = {("avg_pool2d", "divisor_override")}  # None
    has_default |= {(op, "stride") for op in ("max_pool2d", "max_pool2d_float", "avg_pool2d")}
    for op, arguments in examples().items():
        for name, value in arguments.items():
            if isinstance(value, (Tensor, list, bool)) or name == "dtype":
                continue
            below = least.get(name, 0) - 1
            types: list[Any] = [1.0, "1", True]
            values: list[Any] = [below]
            if isinstance(value, tuple):
                types.append((1, 1.0))
                values += [(value[0], below), (below, value[1]), (), (1, 1, 1)]
            if (op, name) not in has_default:
                types.append(None)
            for wrong in types:
                yield op, {name: wrong}, TypeError, name
            for wrong in values:
                yield op, {name: wrong}, ValueError, name


# Arguments that do not fit one another or the rest of the example.
WRONG_TOGETHER: list[Case] = [
    ("pack", {"input": torch.tensor(1.0)}, ValueError, "input"),
    ("pack", {"threshold": None}, ValueError, "flip"),
    ("pack", {"input": words(2, 3, 40)}, TypeError, "threshold"),
    ("pack", {"threshold": words(40)}, TypeError, "threshold"),
    ("unpack", {"channels": 65}, ValueError, "packed"),
    ("unpack", {"channels": 32}, ValueError, "packed"),
    ("unpack", {"dtype": torch.float64}, TypeError, "dtype"),
    ("unpack", {"dtype": "float32"}, TypeError, "dtype"),
    ("flatten", {"packed": words(2)}, ValueError, "packed"),
    ("flatten", {"channels": 65}, ValueError, "packed"),
    ("select_channels", {"inputs": words(2, 3, 2)}, TypeError, "inputs"),
    ("select_channels", {"inputs": [], "channels": []}, ValueError, "inputs"),
    ("select_channels", {"inputs": [words(2, 3, 2), torch.ones(2, 3, 3)]}, TypeError, "inputs"),
    ("select_channels", {"inputs": [words(2, 3, 2), words(2, 3, 2)]}, ValueError, "inputs"),
    ("select_channels", {"inputs": [words(2, 3, 2), words(3, 2, 3)]}, ValueError, "inputs"),
    ("select_channels", {"inputs": [words(2, 3, 2), words(3, 3)]}, ValueError, "inputs"),
    (
        "select_channels",
        {"inputs": [words(2, 3, 2), words(2, 3, 3).to("meta")]},
        ValueError,
        "inputs",
    ),
    ("select_channels", {"channels": 40}, TypeError, "channels"),
    ("select_channels", {"channels": [40]}, ValueError, "channels"),
    ("select_channels", {"channels": [40, 70, 1]}, ValueError, "channels"),
    ("select_channels", {"channels": [40, 70.0]}, TypeError, "channels"),
    ("select_channels", {"channels": [40, -1]}, ValueError, "channels"),
    ("select_channels", {"index": torch.tensor([3, -1]).int()}, ValueError, "index"),
    ("select_channels", {"index": torch.tensor([110]).int()}, ValueError, "index"),
    ("tile_weight", {"groups": 4}, ValueError, "groups"),
    ("tile_weight", {"weight": words(6, 3, 2)}, ValueError, "weight"),
    ("linear", {"in_features": 97}, ValueError, "input"),
    ("linear", {"in_features": 64}, ValueError, "input"),
    ("linear", {"weight": words(5, 2)}, ValueError, "weight"),
    ("linear", {"weight": words(17, 3)}, ValueError, "tiles"),
    ("linear", {"in_features": 2**31}, ValueError, "in_features"),
    ("linear_float", {"dtype": torch.float64}, TypeError, "dtype"),
    ("linear_float", {"dtype": torch.int32}, TypeError, "dtype"),
    ("linear_bits", {"threshold": None}, TypeError, "threshold"),
    ("linear_bits", {"threshold": torch.zeros(5)}, TypeError, "threshold"),
    ("conv2d", {"in_channels": 200}, ValueError, "input"),
    ("conv2d", {"in_channels": 164}, ValueError, "groups"),
    ("conv2d", {"groups": 3}, ValueError, "groups"),
    ("conv2d", {"groups": 1}, ValueError, "weight"),
    ("conv2d", {"groups": 11, "weight": words(5, 3, 2, 1)}, ValueError, "groups"),
    ("conv2d", {"weight": words(5, 9, 2, 2)}, ValueError, "weight"),
    ("conv2d", {"weight": words(5, 3, 13, 2)}, ValueError, "weight"),
    ("conv2d", {"weight": words(5, 0, 2, 2)}, ValueError, "weight"),
    ("conv2d", {"dilation": (4, 1)}, ValueError, "weight"),
    ("conv2d", {"input": words(2, 0, 7, 6)}, ValueError, "weight"),
    ("conv2d", {"pad_value": 2}, ValueError, "pad_value"),
    ("conv2d_float", {"dtype": torch.float64}, TypeError, "dtype"),
    ("conv2d_bits", {"threshold": None}, TypeError, "threshold"),
    ("binary_weight_linear", {"in_features": 69}, ValueError, "input"),
    ("binary_weight_linear", {"input": torch.ones(70).int()}, TypeError, "input"),
    ("binary_weight_linear", {"input": torch.ones(70).byte()}, ValueError, "scale"),
    ("binary_weight_linear", {"weight": words(17, 3)}, ValueError, "tiles"),
    ("binary_weight_linear_bits", {"threshold": None}, TypeError, "threshold"),
    ("binary_weight_linear_bits", {"threshold": words(5)}, TypeError, "threshold"),
    ("binary_weight_linear_bits", {"input": torch.ones(70).byte()}, TypeError, "threshold"),
    ("binary_weight_conv2d", {"input": torch.ones(2, 164, 6, 7)}, ValueError, "input"),
    ("binary_weight_conv2d", {"in_channels": 164}, ValueError, "groups"),
    ("binary_weight_conv2d", {"in_channels": 170}, ValueError, "input"),
    ("binary_weight_conv2d", {"groups": 3}, ValueError, "groups"),
    ("binary_weight_conv2d", {"groups": 1}, ValueError, "weight"),
    ("binary_weight_conv2d", {"dilation": (4, 1)}, ValueError, "weight"),
    ("binary_weight_conv2d", {"input": torch.ones(2, 165, 0, 7)}, ValueError, "weight"),
    ("binary_weight_conv2d", {"pad_value": 2}, ValueError, "pad_value"),
    ("binary_weight_conv2d_bits", {"threshold": None}, TypeError, "threshold"),
    ("max_pool2d", {"kernel_size": (30, 2)}, ValueError, "kernel_size"),
    ("max_pool2d", {"dilation": (9, 1)}, ValueError, "kernel_size"),
    ("max_pool2d", {"padding": (2, 0)}, ValueError, "padding"),
    ("max_pool2d", {"input": words(2, 0, 7, 3)}, ValueError, "kernel_size"),
    ("max_pool2d", {"input": words(2, 6, 0, 3)}, ValueError, "kernel_size"),
    ("max_pool2d_float", {"kernel_size": (30, 2)}, ValueError, "kernel_size"),
    ("max_pool2d_float", {"dilation": (9, 1)}, ValueError, "kernel_size"),
    ("max_pool2d_float", {"padding": (2, 0)}, ValueError, "padding"),
    ("max_pool2d_float", {"input": torch.ones(2, 0, 7, 3)}, ValueError, "kernel_size"),
    ("max_pool2d_float", {"input": torch.ones(2, 6, 7, 3).half()}, TypeError, "input"),
    ("avg_pool2d", {"kernel_size": (30, 2)}, ValueError, "kernel_size"),
    ("avg_pool2d", {"padding": (2, 0)}, ValueError, "padding"),
    ("avg_pool2d", {"input": torch.ones(2, 6, 0, 3)}, ValueError, "kernel_size"),
    ("avg_pool2d", {"input": torch.ones(2, 6, 7, 3).half()}, TypeError, "input"),
    ("global_avg_pool2d", {"input": torch.ones(2, 6, 0, 3)}, ValueError, "input"),
]

WRONG = [*wrong_tensors(), *wrong_numbers(), *WRONG_TOGETHER]


def describe(case: Case) -> str:
    op, wrong, _, _ = case
    parts = []
    for name, value in wrong.items():
        if isinstance(value, Tensor):
            value = f"{value.device} {value.dtype} {list(value.shape)}"
        parts.append(f"{name}={value!r}")
    return f"{op}({', '.join(parts)})"


@pytest.mark.parametrize("op", OPERATORS)
def test_the_examples_are_valid(op):
    """So that what follows fails for the one argument that it replaces."""
    getattr(ops, op)(**examples()[op])
    getattr(torch.ops.bnn_ext, op)(**examples()[op])


@pytest.mark.parametrize("case", WRONG, ids=describe)
def test_wrappers_name_the_argument(case):
    op, wrong, error, name = case
    with pytest.raises(error, match=rf"^{name}\b"):
        getattr(ops, op)(**(examples()[op] | wrong))


def reaches_the_kernel(case: Case) -> bool:
    """torch reads True as 1, and gives a call with any meta tensor to the fake kernel."""
    values = tree_leaves(case[1])
    return not any(v is True or (isinstance(v, Tensor) and v.is_meta) for v in values)


@pytest.mark.parametrize("case", [*filter(reaches_the_kernel, WRONG)], ids=describe)
def test_operators_called_directly_raise_too(case):
    op, wrong, _, _ = case
    with pytest.raises(RuntimeError):
        getattr(torch.ops.bnn_ext, op)(**(examples()[op] | wrong))


AFFINE = ["linear_float", "conv2d_float", "binary_weight_linear", "binary_weight_conv2d"]


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in AFFINE for name in ("scale", "bias")]
    + [(op, "input") for op in AFFINE if op.startswith("binary_weight")]
    + [(op, "input") for op in ("max_pool2d_float", "avg_pool2d", "global_avg_pool2d")],
)
def test_a_gradient_is_refused_rather_than_lost(op, name):
    arguments = examples()[op]
    arguments[name] = torch.ones_like(arguments[name]).requires_grad_()
    with pytest.raises(ValueError, match=rf"^{name} must not require a gradient"):
        getattr(ops, op)(**arguments)
    with torch.no_grad():
        getattr(ops, op)(**arguments)


def test_operators_called_directly_refuse_a_negative_padding_by_plus_or_minus_one():
    arguments = examples()["conv2d"] | {"padding": (1, -1), "pad_value": 1}
    with pytest.raises(RuntimeError, match="padding"):
        torch.ops.bnn_ext.conv2d(**arguments)


def test_sums_that_overflow_int32():
    """2^31 signs would take 256 MiB a row; no rows take none."""
    too_many = 2**26 + 1
    input, weight = words(0, too_many), words(0, too_many)
    with pytest.raises(ValueError, match=r"^in_features\b"):
        ops.linear(input, weight, 32 * too_many)
    with pytest.raises(RuntimeError, match="overflows"):
        torch.ops.bnn_ext.linear(input, weight, 32 * too_many)
    bytes_ = torch.empty(0, 2**24, dtype=torch.uint8)  # up to 255 each
    with pytest.raises(ValueError, match=r"^in_features\b"):
        ops.binary_weight_linear(bytes_, words(0, 2**19), 2**24)
    with pytest.raises(RuntimeError, match="overflows"):
        torch.ops.bnn_ext.binary_weight_linear(bytes_, words(0, 2**19), 2**24)
    images, kernel = words(0, 2**13, 2**13, 1), words(0, 2**13, 2**13, 1)
    with pytest.raises(ValueError, match=r"^weight\b"):
        ops.conv2d(images, kernel, 32)
    with pytest.raises(RuntimeError, match="overflows"):
        torch.ops.bnn_ext.conv2d(images, kernel, 32, 1, 0, 1, 1, 0)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("op", OPERATORS)
def test_devices_without_kernels_are_named(op, device, monkeypatch):
    monkeypatch.setattr(_extension, "has_cuda", False)
    arguments = examples()[op]
    first = next(iter(arguments))
    with FakeTensorMode():  # tensors of devices that need not exist
        moved = map_tensors(lambda x: torch.empty(x.shape, dtype=x.dtype, device=device), arguments)
        with pytest.raises(ValueError, match=rf"^{first}\b.*{device}:0"):
            getattr(ops, op)(**moved)


def test_messages_say_what_was_found_and_what_was_expected():
    with pytest.raises(ValueError) as error:
        ops.linear(words(2, 4), words(5, 3), 70)
    assert re.search(r"3 words .* 70 bits.* \(2, 4\)", str(error.value))
