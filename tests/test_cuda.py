"""CUDA operators against the reference, bit for bit. Needs a GPU and a build with CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packed_inputs import assert_same_floats, examples
from small_models import with_statistics
from test_ops_fused import steps_for
from test_ops_pool import awkward_floats
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import bnn_ext
from bnn_ext import _extension, ops, reference
from bnn_ext import nn as bnn
from bnn_ext.nn.packed import PackedConv2d
from bnn_ext.nn.torch_calls import TorchCall

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


def assert_same(found: Any, expected: Any) -> None:
    """Equal results, one or several; floats to the last bit, all NaNs alike."""
    for actual, wanted in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is None:
            continue
        assert actual.device.type == torch.device(DEVICE).type
        assert actual.dtype == wanted.dtype
        if wanted.is_floating_point():
            assert_same_floats(actual.cpu(), wanted.cpu())
        else:
            assert torch.equal(actual.cpu(), wanted.cpu())


def check(name: str, *args: Any, **kwargs: Any) -> None:
    """The operator on the GPU equals the reference on the CPU, where float64 sums are exact."""
    expected = getattr(reference, name)(*args, **kwargs)
    try:
        found = getattr(ops, name)(*on_gpu(args), **on_gpu(kwargs))
    except RuntimeError as error:
        # A forced path may have no kernel for it; test_paths_run says what each must run.
        if "was asked for, but cannot run this product" not in str(error):
            raise
        return
    assert_same(found, expected)


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
    check("pack", torch.randn(3, 65).T)
    for channels in (32, 64, 36):  # rows and thresholds that no access of 16 bytes fits
        rows = torch.randn(1 + 5 * channels)[1:].view(5, channels)
        check("pack", rows, torch.randn(1 + channels)[1:])
        check("pack", rows.half(), torch.randn(channels))


@gpu
@pytest.mark.parametrize("dtype", PACKABLE)
@pytest.mark.parametrize("channels", SIZES)
def test_pack_of_nchw_maps(channels: int, dtype: torch.dtype) -> None:
    x = torch.randint(-3, 4, (2, channels, 5, 7)).to(dtype).permute(0, 2, 3, 1)
    threshold = random_threshold(channels, 3)
    if dtype != torch.int32:
        threshold = threshold.float()
    check("pack", x)
    check("pack", x, threshold, random_flip(channels))


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
    check("flatten", random_packed(2, 67, channels), channels)


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
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("features", [128, 1000, 4096, 9000])
def test_linear_of_few_rows(path: str, features: int, rows: int) -> None:
    for outputs in (1, 33, 128):
        x, weight = random_packed(rows, features), random_packed(outputs, features)
        check_three_outputs("linear", x, weight, features, outputs=outputs)
    strided = random_packed(33, features).flatten().roll(1)[1:]  # no access of 16 bytes fits it
    weight = strided[: 32 * x.shape[1]].view(32, -1)
    if features % 32 == 0:
        check("linear", x, weight, features)


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
        ("float16",),
        ("bfloat16",),
    ]
    steps *= 2 if long else 1  # more than one kernel takes
    threshold, flip = torch.randn(40) / 2, random_flip(40)
    check(name, *arguments, steps, dtype, threshold, flip)
    check(name, *arguments, steps_for(shape, dtype or torch.float32), dtype, threshold)


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [*SIZES, 40, 200])
def test_elementwise(channels: int, dtype: torch.dtype) -> None:
    x, threshold, flip = torch.randn(3, 7, channels), torch.randn(channels), random_flip(channels)
    x[0, 0, 0], x[1, 0, 0] = float("nan"), float("-inf")
    every_step = steps_for(tuple(x.shape), dtype)  # more than one launch takes
    for steps in ([], every_step[:3], every_step[-8:], every_step):
        for out in (*FLOATS, None):
            check("elementwise", x.to(dtype), steps, out, threshold, flip)
        check("elementwise", x.to(dtype), steps, dtype)


@gpu
def test_elementwise_of_any_strides() -> None:
    x = torch.randn(2, 40, 5, 6)
    unaligned = torch.randn(1 + 5 * 64)[1:].view(5, 64)
    for input in (x.permute(0, 2, 3, 1), x[0, 0, 0].expand(3, 6), torch.randn(70)[::2], unaligned):
        steps: list[ops.Step] = [("add", torch.randn(tuple(input.shape)).flip(0))]
        check("elementwise", input, steps, torch.float32, torch.zeros(input.shape[-1]))


def whole_numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    """Integers whose float32 sums are exact in any order; of 12 bits, where `dtype` holds them."""
    least, most = (0, 255) if dtype == torch.uint8 else (-4095, 4095)
    return torch.randint(least, most + 1, shape).to(dtype)


def check_real(name: str, input: Tensor, outputs: int, *arguments: Any) -> None:
    """`name` with and without scale and bias, `name`_bits with and without flips."""
    whole = input.dtype == torch.uint8
    affine = () if whole else (torch.randn(outputs), torch.randn(outputs))
    threshold = random_threshold(outputs, 500).to(torch.int32 if whole else torch.float32)
    check(name, input, *arguments)
    check(name, input, *arguments, *affine)
    check(f"{name}_bits", input, *arguments, threshold=threshold)
    check(f"{name}_bits", input, *arguments, threshold=threshold, flip=random_flip(outputs))


REAL = [*FLOATS, torch.uint8]


@gpu
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("features", [*SIZES, 784])
def test_binary_weight_linear(features: int, dtype: torch.dtype) -> None:
    for rows, outputs in ((1, 33), (8, 10), (9, 64), (70, 1), (300, 256)):
        x, weight = whole_numbers(dtype, rows, features), random_packed(outputs, features)
        check_real("binary_weight_linear", x, outputs, weight, features)
    unaligned = whole_numbers(dtype, 1 + 8 * features)[1:].view(8, features)
    check_real("binary_weight_linear", unaligned, 1, weight, features)


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("features", [1, 3, 70, 784, 4096])
def test_sums_of_real_inputs_are_as_near_as_stated(features: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, features).to(dtype), random_packed(65, features)
    found = ops.binary_weight_linear(x.float().cuda(), weight.cuda(), features).cpu()
    exact = reference.real_linear_sums(x, weight, features)
    # The bound in the documentation: each input goes through that many roundings at most.
    bound = (features / 4 + 3) * 2.0**-24 * x.double().abs().sum(-1, keepdim=True)
    assert ((found.double() - exact).abs() <= bound).all()
    for row in range(9):  # nor do they depend on the batch
        alone = ops.binary_weight_linear(x[row : row + 1].float().cuda(), weight.cuda(), features)
        assert_same_floats(alone[0].cpu(), found[row])


@gpu
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [(1, 1, 1), (3, 128, 1), (4, 33, 1), (65, 40, 1), (66, 6, 2), (96, 96, 3), (40, 40, 40)],
)
def test_binary_weight_conv2d(
    inputs: int, outputs: int, groups: int, memory: torch.memory_format, dtype: torch.dtype
) -> None:
    x = whole_numbers(dtype, 2, inputs, 6, 5).contiguous(memory_format=memory)
    weight = random_packed(outputs, 3, 2, inputs // groups)
    for pad_value in (-1, 0, 1):
        for geometry in (((1, 1), (1, 1), (1, 1)), ((2, 1), (1, 2), (1, 3))):
            arguments = (weight, inputs, *geometry, groups, pad_value)
            check_real("binary_weight_conv2d", x, outputs, *arguments)


@gpu
def test_binary_weight_conv2d_gives_channels_last() -> None:
    x, weight = torch.randn(2, 3, 6, 5), random_packed(8, 3, 3, 3)
    found = ops.binary_weight_conv2d(x.cuda(), weight.cuda(), 3)
    assert found.stride() == ops.binary_weight_conv2d(x, weight, 3).stride()
    check("binary_weight_conv2d", x[:, :, ::2].round(), weight, 3, padding=(1, 1))


@gpu
@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", [1, 32, 40, 129])
def test_select_channels(first: int, second: int) -> None:
    channels = [first, 0, second]
    inputs = [random_packed(3, 13, count) for count in channels]
    every = torch.arange(first + second)
    for index in (every, torch.randperm(len(every)), every[first // 2 :], every.flip(0), every[:0]):
        check("select_channels", inputs, channels, index.int())
    views = [inputs[0].transpose(0, 1), random_packed(13, 6, second)[:, ::2]]
    check("select_channels", views, [first, second], every.int())
    shuffled = every.repeat(128)[: 128 * (len(every) // 2)].view(-1, 128).T.flatten()
    check("select_channels", inputs, channels, shuffled.int())


@gpu
def test_select_channels_of_many_inputs() -> None:
    inputs = [random_packed(5, 33) for _ in range(129)]
    index = torch.randperm(128 * 33).int()
    check("select_channels", inputs[:128], [33] * 128, index)
    with pytest.raises(RuntimeError, match="inputs must be 1 to 128 tensors"):
        ops.select_channels(on_gpu(inputs), [33] * 129, index.cuda())


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
    for channels in (1, 33, 64, 100, 128, 200):
        x = random_packed(2, 8, 9, channels)
        check("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode)
        check("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode, random_flip(channels))


@gpu
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (5, 7)])
@pytest.mark.parametrize("stride", [None, (1, 1), (2, 3)])
def test_pools_of_real_maps(
    kernel: tuple[int, int], stride: tuple[int, int] | None, ceil_mode: bool
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    for channels in (1, 3, 4, 33, 64):
        for x in (torch.randn(2, 9, 11, channels), awkward_floats(2, 9, 11, channels)):
            for pad in ((0, 0), padding):
                check("max_pool2d_float", x, kernel, stride, pad, (1, 1), ceil_mode)
                for counted in (False, True):
                    check("avg_pool2d", x, kernel, stride, pad, ceil_mode, counted)
                check("avg_pool2d", x, kernel, stride, pad, ceil_mode, True, 7)
    if kernel != (5, 7):
        check("max_pool2d_float", x, kernel, stride, padding, (2, 3), ceil_mode)
    for view in (x.transpose(1, 2), x[:, ::2], torch.randn(1 + x.numel())[1:].view(x.shape)):
        check("max_pool2d_float", view, (2, 2))
        check("avg_pool2d", view, (2, 2))
        check("global_avg_pool2d", view)


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
        ("max_pool2d_float", (torch.empty(0, 6, 6, 40), (2, 2))),
        ("avg_pool2d", (torch.empty(0, 6, 6, 40), (2, 2))),
        ("global_avg_pool2d", (torch.empty(0, 6, 6, 40),)),
        ("select_channels", ([random_packed(0, 40)], [40], torch.arange(9, dtype=torch.int32))),
        ("elementwise", (torch.empty(0, 40), [("add", torch.ones(40))], torch.float32)),
        ("elementwise", (torch.empty(3, 0), [], None, torch.empty(0))),
        ("binary_weight_linear", (torch.empty(0, 40), weight, 40)),
        ("binary_weight_linear", (torch.empty(3, 0), random_packed(5, 0), 0)),
        ("binary_weight_conv2d", (torch.empty(0, 40, 6, 6), kernel, 40)),
    ]


@gpu
@pytest.mark.parametrize(("name", "args"), empty_calls())
def test_empty(name: str, args: tuple[Any, ...]) -> None:
    check(name, *args)


def calls_on(device: str) -> dict[str, dict[str, Any]]:
    """A call of every operator, as its schema has it, with all of its arguments."""
    calls = tree_map_only(Tensor, lambda tensor: tensor.to(device), examples())
    for arguments in calls.values():
        if "tiles" in arguments:  # every device has its own
            weight = arguments["weight"]
            arguments["tiles"] = ops.tile_weight(weight, arguments.get("groups", 1))
    channels = 5  # of the results of these examples
    vectors = [torch.randn(channels, device=device) for _ in range(3)]
    for name in ("linear", "conv2d"):
        sums = getattr(torch.ops.bnn_ext, name)(**calls[name])
        calls[f"{name}_fused"] = calls[name] | {
            "operations": [0, 1, 5],
            "operands": [vectors[0], torch.randn(sums.shape, device=device), *vectors[1:]],
            "dtype": torch.float16,
            "threshold": vectors[0],
            "flip": random_flip(channels).to(device),
        }
    fused = ("operations", "operands", "dtype", "threshold", "flip")
    calls["elementwise"] = {name: calls["linear_fused"][name] for name in fused}
    calls["elementwise"]["input"] = torch.randn(2, channels, device=device)
    return calls


def test_there_is_a_call_of_every_operator() -> None:
    assert calls_on("cpu").keys() == set(ops.__all__)


@gpu
@pytest.mark.parametrize("name", ops.__all__)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.bnn_ext, name).default
    torch.library.opcheck(operator, (), calls_on(DEVICE)[name])


def tensor_arguments(arguments: dict[str, Any]) -> list[str]:
    return [name for name, value in arguments.items() if isinstance(value, Tensor)]


@gpu
@pytest.mark.parametrize("name", ops.__all__)
def test_a_cpu_argument_among_cuda_arguments_is_an_error(name: str) -> None:
    operator, arguments = getattr(torch.ops.bnn_ext, name), calls_on(DEVICE)[name]
    names = tensor_arguments(arguments)
    if name.startswith("binary_weight"):
        names.remove("tiles")  # which CUDA does not read there
    for stays in names:
        moved = arguments | {stays: arguments[stays].cpu()}
        if all(value.is_cpu for value in tree_leaves(moved) if isinstance(value, Tensor)):
            continue
        with pytest.raises(RuntimeError, match=r"must be on .*found the CPU"):
            operator(**moved)


@gpu
@pytest.mark.parametrize("name", ops.__all__)
def test_runs_on_the_current_stream_without_synchronizing(name: str) -> None:
    operator, arguments = getattr(torch.ops.bnn_ext, name), calls_on(DEVICE)[name]
    expected = operator(**arguments)
    # Capture fails on work in another stream and on any synchronization.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operator(**arguments)
    for result in tree_leaves(found):
        result.zero_()
    graph.replay()
    assert_same(found, expected)


@gpu
def test_waits_for_what_comes_before_it_on_its_stream() -> None:
    source, x = torch.randn(64, 4096, device=DEVICE), torch.zeros(64, 4096, device=DEVICE)
    expected = ops.pack(source)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # so many cycles that a kernel elsewhere would be done
        x.copy_(source)
        found = ops.pack(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, expected)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ops.__all__)
def test_runs_on_the_device_of_its_input(name: str) -> None:
    operator, arguments = getattr(torch.ops.bnn_ext, name), calls_on(DEVICE)[name]
    moved = tree_map_only(Tensor, lambda tensor: tensor.to("cuda:1"), arguments)
    found = operator(**moved)
    assert all(result.device == torch.device("cuda:1") for result in tree_leaves(found))
    assert_same(found, operator(**arguments))


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
        assert_same(actual, expected)
    input = x.cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = sequence([input])
    input.copy_(torch.randn(3, 40))
    graph.replay()
    assert_same(found, sequence([input]))


def small_network() -> nn.Module:
    """Whose sums are exact in any order: real inputs meet binary weights, floats no others."""
    return with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(3, 64, 3, padding=1, input_quantizer=None),
            nn.BatchNorm2d(64),
            bnn.Residual(
                nn.Sequential(
                    bnn.BinaryConv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.PReLU(64)
                )
            ),
            bnn.BinaryConv2d(64, 96, 3, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(96),
            nn.MaxPool2d(2),
            nn.Flatten(),
            bnn.BinaryLinear(96 * 4 * 4, 10),
        )
    )


def test_small_network_is_packed_whole() -> None:
    fast = bnn_ext.convert(small_network(), torch.randint(-9, 10, (2, 3, 16, 16)).float())
    assert not any(isinstance(node.module, TorchCall) for node in fast.nodes)


@gpu
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_converted_network(batch: int) -> None:
    fast = bnn_ext.convert(small_network(), torch.randint(-9, 10, (2, 3, 16, 16)).float())
    images = torch.randint(-9, 10, (batch, 3, 16, 16)).float()
    expected = fast(images)
    fast, images = fast.to(DEVICE), images.to(DEVICE)
    assert_same(fast(images), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        found = fast(images)
    graph.replay()
    assert_same(found, expected)
    assert_same(torch.compile(fast, fullgraph=True)(images), expected)
