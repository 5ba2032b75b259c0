"""CUDA operators against the reference, bit for bit. Needs a GPU and a build with CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bnn_ext import _extension, ops, reference
from bnn_ext.nn.packed import PackedConv2d

DEVICE = "cuda"
SIZES = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129]
PACKABLE = [torch.float32, torch.float16, torch.bfloat16, torch.int32]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]

built = pytest.mark.skipif(not _extension.has_cuda, reason="bnn_ext was built without CUDA")
gpu = pytest.mark.skipif(
    not (_extension.has_cuda and torch.cuda.is_available()),
    reason="needs a GPU and a build of bnn_ext with CUDA",
)


PATHS = ("auto", "popc", "gemv", "mma", "wgmma")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once by every path of linear and conv2d."""
    from bnn_ext import _C_cuda

    _C_cuda.set_path(request.param)
    yield request.param
    _C_cuda.set_path("auto")


def on_gpu(value: Any) -> Any:
    """With its tensors, those in lists and tuples too, on the GPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(DEVICE), value)


def check(name: str, *args: Any, **kwargs: Any) -> None:
    """The operator on the GPU equals the reference on the CPU, where float64 sums are exact."""
    expected = getattr(reference, name)(*args, **kwargs)
    try:
        found = getattr(ops, name)(
            *map(on_gpu, args), **{key: on_gpu(value) for key, value in kwargs.items()}
        )
    except RuntimeError as error:
        # A forced path may have no kernel for it; test_paths_run says what each must run.
        if "was asked for, but cannot run this product" not in str(error):
            raise
        return
    assert found.device.type == torch.device(DEVICE).type
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


def random_packed(*shape: int) -> Tensor:
    """Random bits; the last size counts bits, not words."""
    return reference.pack_bits(torch.rand(shape) < 0.5)


def random_flip(channels: int) -> Tensor:
    return random_packed(channels)


def random_threshold(channels: int, spread: int = 5) -> Tensor:
    return torch.randint(-spread, spread + 1, (channels,), dtype=torch.int32)


def check_three_outputs(name: str, *args: Any, outputs: int, **kwargs: Any) -> None:
    """`name`, `name`_float in every dtype, `name`_bits, with and without their optional vectors."""
    check(name, *args, **kwargs)
    scale, bias = torch.randn(outputs), torch.randn(outputs)
    for dtype in FLOATS:
        check(f"{name}_float", *args, scale=scale, bias=bias, dtype=dtype, **kwargs)
    check(f"{name}_float", *args, scale=scale, **kwargs)
    check(f"{name}_float", *args, bias=bias, **kwargs)
    check(f"{name}_float", *args, **kwargs)
    threshold = random_threshold(outputs)
    check(f"{name}_bits", *args, threshold=threshold, **kwargs)
    check(f"{name}_bits", *args, threshold=threshold, flip=random_flip(outputs), **kwargs)


@built
@pytest.mark.parametrize("name", ops.__all__)
def test_every_operator_has_a_cuda_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bnn_ext::{name}", "CUDA")


@built
def test_architectures() -> None:
    from bnn_ext import _C_cuda

    assert all(name[:2].isdigit() for name in _C_cuda.architectures().split(";"))


@gpu
@pytest.mark.parametrize("dtype", PACKABLE)
@pytest.mark.parametrize("channels", SIZES)
def test_pack(channels: int, dtype: torch.dtype) -> None:
    x = torch.randint(-3, 4, (5, channels)).to(dtype)
    if dtype.is_floating_point:
        x[0, 0], x[1, 0], x[2, 0] = float("nan"), -0.0, float("-inf")
    threshold = random_threshold(channels, 3)
    if dtype != torch.int32:
        threshold = threshold.float()
    check("pack", x)
    check("pack", x, threshold)
    check("pack", x, threshold, random_flip(channels))


@gpu
def test_pack_reads_any_strides() -> None:
    x = torch.randn(2, 40, 5, 6)
    check("pack", x.permute(0, 2, 3, 1))  # NCHW seen as NHWC
    check("pack", x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1))
    check("pack", x[:, 1::2, ::2].transpose(1, 3))
    check("pack", x[0, 0, 0].expand(3, 6))
    check("pack", torch.randn(2, 33, 2, 3, 4).movedim(1, -1))
    check("pack", torch.randn(70)[::2])


@gpu
@pytest.mark.parametrize("channels", SIZES)
def test_unpack(channels: int) -> None:
    packed = random_packed(3, 2, channels)
    for dtype in (*PACKABLE, torch.int8):
        check("unpack", packed, channels, dtype)
    check("unpack", packed.transpose(0, 1), channels)


@gpu
@pytest.mark.parametrize("channels", SIZES)
def test_flatten(channels: int) -> None:
    check("flatten", random_packed(3, 2, 5, channels), channels)
    check("flatten", random_packed(3, 2, 5, channels).transpose(1, 2), channels)
    check("flatten", random_packed(3, channels), channels)


def popcounts(weight: Tensor) -> Tensor:
    """What `tile_weight` gives on CUDA: `[kh, kw, out]`, over the taps up to each."""
    bits = reference.unpack_bits(weight, 32 * weight.shape[-1]).sum(-1)
    taps = bits.reshape(*bits.shape[:3], *[1] * (3 - bits.dim()))
    return taps.cumsum(1).cumsum(2).permute(1, 2, 0).to(torch.int32)


@gpu
@pytest.mark.parametrize("shape", [(1, 70), (40, 4000), (1, 3, 2, 33), (40, 5, 5, 2000)])
def test_tile_weight(shape: tuple[int, ...]) -> None:
    weight = random_packed(*shape)
    assert torch.equal(ops.tile_weight(weight.to(DEVICE)).cpu(), popcounts(weight))


@gpu
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_with_and_without_tiles(path: str, pad_value: int) -> None:
    x, weight = random_packed(2, 5, 6, 64), random_packed(40, 3, 3, 64)
    geometry = ((1, 1), (1, 2), (1, 1), 1, pad_value)
    expected = reference.conv2d(x, weight, 64, *geometry)
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    if path == "gemv":  # which computes no convolution
        with pytest.raises(RuntimeError, match="the path gemv was asked for, but cannot run"):
            ops.conv2d(x, weight, 64, *geometry)
        return
    for tiles in (None, ops.tile_weight(weight)):
        assert torch.equal(ops.conv2d(x, weight, 64, *geometry, tiles=tiles).cpu(), expected)


@gpu
def test_paths_run() -> None:
    """What no path may refuse, on the GPUs that it is for."""
    from bnn_ext import _C_cuda

    x, weight = random_packed(3, 70).to(DEVICE), random_packed(40, 70).to(DEVICE)
    map_, kernel = random_packed(2, 5, 6, 70).to(DEVICE), random_packed(40, 3, 3, 70).to(DEVICE)
    capability = torch.cuda.get_device_capability()
    can_run = {"mma": (7, 5) <= capability <= (9, 0), "wgmma": capability == (9, 0)}
    for path in PATHS:
        if not can_run.get(path, True):
            continue
        _C_cuda.set_path(path)
        assert _C_cuda.path() == path
        ops.linear(x, weight, 70)
        if path != "gemv":
            ops.conv2d(map_, kernel, 70, padding=1)
    _C_cuda.set_path("auto")


@built
def test_unknown_paths_are_refused() -> None:
    from bnn_ext import _C_cuda

    with pytest.raises(ValueError, match="one of auto, popc, gemv, mma, wgmma, found 'fast'"):
        _C_cuda.set_path("fast")
    command = [sys.executable, "-c", "import torch, bnn_ext._C_cuda"]
    found = subprocess.run(
        command, env=os.environ | {"BNN_EXT_CUDA_PATH": "fast"}, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "one of auto, popc, gemv, mma, wgmma, found 'fast'" in found.stderr


@gpu
def test_layers_derive_tiles_anew_when_they_move() -> None:
    layer = PackedConv2d(random_packed(40, 3, 3, 70), 70, padding=(1, 1))
    x = random_packed(2, 5, 6, 70)
    expected = layer(x)
    moved = layer.to(DEVICE)
    assert torch.equal(moved.tiles.cpu(), popcounts(layer.weight.cpu()))
    assert torch.equal(moved(x.to(DEVICE)).cpu(), expected)
    assert torch.equal(moved.cpu()(x), expected)


@gpu
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 129])
@pytest.mark.parametrize("features", SIZES)
def test_linear(path: str, features: int, outputs: int) -> None:
    rows = 3 if path in ("auto", "gemv") else 35
    x, weight = random_packed(rows, features), random_packed(outputs, features)
    check_three_outputs("linear", x, weight, features, outputs=outputs)


@gpu
def test_linear_shapes(path: str) -> None:
    weight = random_packed(10, 40)
    check("linear", random_packed(40), weight, 40)
    check("linear", random_packed(2, 3, 4, 40), weight, 40)
    check("linear", random_packed(3, 4, 40).transpose(0, 1), weight, 40)
    check("linear", random_packed(300, 5000), random_packed(65, 5000), 5000)


@gpu
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [(1, 1, 1), (3, 33, 1), (32, 32, 1), (65, 40, 1), (128, 129, 1)]
    + [(2, 4, 2), (66, 6, 2), (96, 96, 3), (99, 33, 3), (40, 40, 40), (192, 64, 2)],
)
def test_conv2d_channels(path: str, inputs: int, outputs: int, groups: int, pad_value: int) -> None:
    x = random_packed(2, 5, 6, inputs)
    weight = random_packed(outputs, 3, 3, inputs // groups)
    geometry = ((1, 1), (1, 1), (1, 1), groups, pad_value)
    check_three_outputs("conv2d", x, weight, inputs, *geometry, outputs=outputs)


@gpu
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (4, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3)])
def test_conv2d_geometry(
    path: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    pad_value: int,
) -> None:
    for inputs, groups, outputs in ((70, 2, 6), (70, 1, 40), (64, 2, 64)):
        x, weight = (
            random_packed(2, 9, 8, inputs),
            random_packed(outputs, *kernel, inputs // groups),
        )
        check("conv2d", x, weight, inputs, stride, padding, dilation, groups, pad_value)


@gpu
def test_conv2d_reads_strided_maps(path: str) -> None:
    weight = random_packed(8, 3, 3, 40)
    check("conv2d", random_packed(2, 9, 8, 40).transpose(1, 2), weight, 40)
    check("conv2d", random_packed(2, 9, 8, 40)[:, ::2], weight, 40)


@gpu
@pytest.mark.parametrize("dtype", [*FLOATS, None])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("name", ["linear_fused", "conv2d_fused"])
def test_fused(path: str, name: str, long: bool, dtype: torch.dtype | None) -> None:
    if name == "conv2d_fused" and path == "gemv":
        return
    x, weight, shape = random_packed(3, 70), random_packed(40, 70), (3, 40)
    arguments: tuple[Any, ...] = (x, weight, 70)
    if name == "conv2d_fused":
        x, weight, shape = random_packed(2, 5, 6, 70), random_packed(40, 3, 3, 70), (2, 5, 6, 40)
        arguments = (x, weight, 70, (1, 1), (1, 1), (1, 1), 1, 0)
    steps: list[ops.Step] = [
        ("multiply", torch.randn(40) / 9),
        ("add", torch.randn(shape).to(dtype or torch.float32)),
        ("prelu", torch.randn(40)),
        ("maximum", -torch.rand(shape)),
        ("minimum", torch.rand(40)),
        ("multiply_add", torch.randn(40), torch.randn(40)),
        ("divide", torch.randn(40)),
    ]
    steps *= 2 if long else 1  # more than one kernel takes
    threshold, flip = torch.randn(40) / 2, random_flip(40)
    expected = getattr(reference, name)(*arguments, steps, dtype, threshold, flip)
    found = getattr(ops, name)(*map(on_gpu, (*arguments, steps, dtype, threshold, flip)))
    assert (found[0] is None) == (dtype is None)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual is None or torch.equal(actual.cpu(), wanted)


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_elementwise(dtype: torch.dtype) -> None:
    x, threshold, flip = torch.randn(3, 40).to(dtype), torch.randn(40), random_flip(40)
    norm = ("multiply_add", torch.randn(40), torch.randn(40))
    for steps in ([norm, ("add", torch.randn(3, 40)), ("prelu", torch.randn(40))], []):
        for out in (*FLOATS, None):
            arguments = (x, steps, out, threshold, flip)
            expected = reference.elementwise(*arguments)
            found = ops.elementwise(*on_gpu(arguments))
            for actual, wanted in zip(found, expected, strict=True):
                assert (actual is None) == (wanted is None)
                assert actual is None or torch.equal(actual.cpu(), wanted)


@gpu
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8])
def test_real_inputs(dtype: torch.dtype) -> None:
    """On integers of 12 bits: float32 sums of them are exact in any order, those of TF32 not."""
    whole = dtype == torch.uint8
    low, high = (0, 256) if whole else (-4095, 4096)
    row, weight = torch.randint(low, high, (3, 70)).to(dtype), random_packed(40, 70)
    image, kernel = torch.randint(low, high, (2, 6, 5, 7)).to(dtype), random_packed(40, 3, 3, 3)
    geometry = (6, (2, 1), (1, 2), (1, 1), 2, -1)
    affine = () if whole else (torch.randn(40), torch.randn(40))
    threshold = random_threshold(40, 500).to(torch.int32 if whole else torch.float32)
    bits = {"threshold": threshold, "flip": random_flip(40)}
    check("binary_weight_linear", row, weight, 70, *affine)
    check("binary_weight_linear_bits", row, weight, 70, **bits)
    check("binary_weight_conv2d", image, kernel, *geometry, *affine)
    check("binary_weight_conv2d_bits", image, kernel, *geometry, **bits)


@gpu
def test_select_channels() -> None:
    inputs = [random_packed(2, 3, 40), random_packed(2, 3, 70)]
    for index in (torch.arange(110), torch.randperm(110), torch.arange(35, 68)):
        check("select_channels", inputs, [40, 70], index.int())


@gpu
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((2, 2), None, (0, 0), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((3, 2), (2, 3), (1, 0), (2, 3)),
        ((1, 4), (3, 1), (0, 2), (1, 2)),
    ],
)
def test_max_pool2d(
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> None:
    for channels in (1, 33, 64, 100):
        x = random_packed(2, 8, 9, channels)
        check("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode)
        check("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode, random_flip(channels))


def empty_calls() -> list[tuple[str, tuple[Any, ...]]]:
    weight, kernel = random_packed(5, 40), random_packed(5, 3, 3, 40)
    map_ = random_packed(0, 6, 6, 40)
    return [
        ("pack", (torch.empty(0, 40),)),
        ("pack", (torch.empty(3, 0),)),
        ("unpack", (random_packed(0, 40), 40)),
        ("flatten", (random_packed(0, 3, 40), 40)),
        ("flatten", (random_packed(2, 0, 40), 40)),
        ("linear", (random_packed(0, 40), weight, 40)),
        ("linear", (random_packed(3, 40), random_packed(0, 40), 40)),
        ("linear", (random_packed(3, 0), random_packed(5, 0), 0)),
        ("linear_float", (random_packed(0, 40), weight, 40)),
        ("linear_bits", (random_packed(0, 40), weight, 40, random_threshold(5))),
        ("conv2d", (map_, kernel, 40)),
        ("conv2d_float", (map_, kernel, 40)),
        ("max_pool2d", (map_, (2, 2))),
    ]


@gpu
@pytest.mark.parametrize(("name", "args"), empty_calls())
def test_empty(name: str, args: tuple[Any, ...]) -> None:
    check(name, *args)


def operator_calls() -> dict[str, dict[str, Any]]:
    """One call of every operator that has a CUDA kernel, with all of its arguments."""
    row, weight, vector = random_packed(3, 40), random_packed(5, 40), torch.randn(5)
    map_, kernel = random_packed(2, 6, 6, 40), random_packed(5, 3, 3, 40)
    linear = {"input": row, "weight": weight, "in_features": 40}
    conv2d = {
        "input": map_,
        "weight": kernel,
        "in_channels": 40,
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "pad_value": 0,
    }
    affine = {"scale": vector, "bias": vector, "dtype": torch.bfloat16}
    bits = {"threshold": random_threshold(5), "flip": random_flip(5)}
    return {
        "pack": {"input": torch.randn(3, 5), "threshold": vector, "flip": random_flip(5)},
        "unpack": {"packed": row, "channels": 40, "dtype": torch.float16},
        "flatten": {"packed": map_, "channels": 40},
        "tile_weight": {"weight": kernel, "groups": 1},
        "linear": linear,
        "linear_float": linear | affine,
        "linear_bits": linear | bits,
        "conv2d": conv2d,
        "conv2d_float": conv2d | affine,
        "conv2d_bits": conv2d | bits,
        "max_pool2d": {
            "input": map_,
            "kernel_size": [2, 2],
            "stride": [2, 2],
            "padding": [0, 0],
            "dilation": [1, 1],
            "ceil_mode": False,
            "minimum": random_flip(40),
        },
    }


def all_on_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: on_gpu(value) for name, value in arguments.items()}


@gpu
@pytest.mark.parametrize(("name", "arguments"), operator_calls().items())
def test_opcheck(name: str, arguments: dict[str, Any]) -> None:
    operator = getattr(torch.ops.bnn_ext, name).default
    torch.library.opcheck(operator, (), all_on_gpu(arguments))


@gpu
@pytest.mark.parametrize(
    "name", sorted(operator_calls().keys() - {"unpack", "flatten", "tile_weight"})
)
def test_a_cpu_argument_among_cuda_arguments_is_an_error(name: str) -> None:
    operator, arguments = getattr(torch.ops.bnn_ext, name), operator_calls()[name]
    tensors = {key for key, value in arguments.items() if isinstance(value, Tensor)}
    assert len(tensors) > 1
    for stays in tensors:
        with pytest.raises(RuntimeError, match=r"must be on .*found the CPU"):
            operator(**(all_on_gpu(arguments) | {stays: arguments[stays]}))


@gpu
@pytest.mark.parametrize(("name", "arguments"), operator_calls().items())
def test_runs_on_the_current_stream_without_synchronizing(
    name: str, arguments: dict[str, Any]
) -> None:
    operator, arguments = getattr(torch.ops.bnn_ext, name), all_on_gpu(arguments)
    expected = operator(**arguments)
    # Capture fails on work in another stream and on any synchronization.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operator(**arguments)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("name", "arguments"), operator_calls().items())
def test_runs_on_the_device_of_its_input(name: str, arguments: dict[str, Any]) -> None:
    operator = getattr(torch.ops.bnn_ext, name)
    expected = operator(**all_on_gpu(arguments))
    moved = {k: v.to("cuda:1") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    found = operator(**moved)
    assert found.device == torch.device("cuda:1")
    assert torch.equal(found.cpu(), expected.cpu())


@gpu
def test_sequence() -> None:
    weight = random_packed(5, 40)
    linear = {"input": "bits", "weight": weight, "in_features": 40, "threshold": torch.zeros(5)}
    calls = [
        ops.Call("pack", {"input": "x"}, ("bits",)),
        ops.Call("linear_fused", linear, ("floats", "signs")),
    ]
    sequence = ops.Sequence(["x"], calls, ["floats", "signs"])
    x = torch.randn(3, 40)
    expected = sequence([x])
    sequence.constants = [constant.cuda() for constant in sequence.constants]
    kernel = torch.ops.bnn_ext.sequence([x.cuda()], sequence.constants, sequence.program)
    for actual in (sequence([x.cuda()]), kernel):
        assert all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True))
