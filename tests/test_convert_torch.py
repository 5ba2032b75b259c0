"""Converted networks inside torch: other sizes, copies, dtypes, compilers, threads."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import with_statistics
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnn_ext
from bnn_ext import models
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 3, 12, 10)


def block(channels: int) -> nn.Module:
    branch = nn.Sequential(
        bnn.BinaryConv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    )
    return bnn.Residual(branch, activation=nn.PReLU(channels))


def convolutional() -> nn.Sequential:
    """A residual network whose map may have any size."""
    torch.manual_seed(0)
    return with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(3, 16, 3, padding=1, input_quantizer=None),
            nn.BatchNorm2d(16),
            block(16),
            nn.MaxPool2d(2),
            block(16),
            bnn.BinaryConv2d(16, 33, 3),
            nn.BatchNorm2d(33),
            bnn.BinaryConv2d(33, 5, 1, weight_quantizer="magnitude_aware_sign"),
        )
    )


def classifier() -> nn.Sequential:
    return convolutional().extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]).eval()


def converted(model: nn.Module, real_layers: str = "torch") -> PackedNetwork:
    return bnn_ext.convert(model, torch.randn(SHAPE), verify=False, real_layers=real_layers)


@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@torch.no_grad()
def test_any_batch_and_any_size_of_the_map(real_layers):
    model = convolutional()
    fast = converted(model, real_layers)
    for shape in ((1, 3, 12, 10), (5, 3, 12, 10), (2, 3, 9, 17), (1, 3, 30, 6), (3, 3, 7, 7)):
        x = torch.randn(shape)
        if real_layers == "torch":
            assert torch.equal(fast(x), model(x))
        else:
            found = bnn_ext.verify(model, fast, x)
            assert found.flips <= 1e-3 * found.activations  # within rounding of a threshold


@torch.no_grad()
def test_copies():
    fast = converted(classifier())
    x = torch.randn(SHAPE)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other(x), fast(x))
        assert str(other.report) == str(fast.report)
        own = {t.data_ptr() for t in other.buffers() if t.numel()}
        assert not own & {t.data_ptr() for t in fast.buffers()}


@torch.no_grad()
def test_state_dict():
    fast = converted(classifier())
    x = torch.randn(SHAPE)
    other = copy.deepcopy(fast)
    for buffer in other.buffers():
        buffer.zero_()
    assert not torch.equal(other(x), fast(x))
    other.load_state_dict(fast.state_dict())
    assert torch.equal(other(x), fast(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_moves_leave_bits_and_thresholds_alone(dtype):
    fast = converted(convolutional())
    before = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    x = torch.randn(SHAPE)
    expected = fast(x)
    fast.to(dtype)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fast.state_dict().items())
    assert torch.equal(fast(x), expected)
    fast.cpu().eval()
    assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype):
    """Sums of at most 3 * 9 and 21 * 9 signs are integers below 256: exact in both dtypes."""
    torch.manual_seed(0)
    model = with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(3, 21, 3, bias=False),
            nn.BatchNorm2d(21),
            nn.Hardtanh(),
            bnn.BinaryConv2d(21, 9, 3, bias=False),
            nn.BatchNorm2d(9),
            bnn.BinaryConv2d(9, 4, 3),
        )
    ).to(dtype)
    x = torch.randn(SHAPE).to(dtype)
    for real_layers in ("fused", "torch"):
        fast = bnn_ext.convert(model, x, real_layers=real_layers)
        for input in (x, torch.randn(3, 3, 9, 14).to(dtype)):
            found = fast(input)
            assert found.dtype == dtype
            assert torch.equal(found, model(input))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["birealnet18", "reactnet_a", "brn", "resnet_binary"])
@torch.no_grad()
def test_half_precision_is_fused_like_float32(name, dtype):
    """Scales, BatchNorm, residuals and activations are steps; so is what each of them rounds."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    model = getattr(models, name)()
    model(x)  # has statistics then
    model.eval()
    fast = bnn_ext.convert(model, x, verify=False, real_layers="torch")
    layers = Counter(type(step).__name__ for step in fast.modules())
    half = bnn_ext.convert(model.to(dtype), x.to(dtype), real_layers="torch")
    assert torch.equal(half(x.to(dtype)), model(x.to(dtype)))
    found = Counter(type(step).__name__ for step in half.modules())
    assert layers["FusedConv2d"] == found["FusedConv2d"] >= 8
    assert found["TorchCall"] <= layers["TorchCall"] + layers["RealMaxPool2d"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts(context):
    fast = converted(classifier())
    x = torch.randn(SHAPE)
    with torch.no_grad():
        expected = fast(x)
    with context():
        found = fast(x)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_several_threads_at_once():
    fast = converted(classifier())
    inputs = [torch.randn(SHAPE) for _ in range(24)]
    expected = [fast(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(fast, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_number_of_threads():
    fast = converted(classifier(), "fused")
    x = torch.randn(8, 3, 40, 40)
    expected = fast(x)
    torch.set_num_threads(2)
    try:
        found = fast(x)
    finally:
        torch.set_num_threads(1)
    # The real layers behind the bits are torch's, which may split its sums between threads.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def copies_of(fast: nn.Module, x: Tensor) -> int:
    with Calls() as calls, torch.no_grad():
        fast(x)
    return sum(calls.counts[name] for name in ("clone", "copy_", "contiguous", "_to_copy"))


def test_maps_are_not_copied():
    """All of a network on bits works in torch.channels_last; the output is what the model's is."""
    last = torch.channels_last
    model = convolutional().to(memory_format=last)
    x = torch.randn(SHAPE).to(memory_format=last)
    fast = bnn_ext.convert(model, x, verify=False)
    assert copies_of(fast, x) == 0
    assert fast(x).is_contiguous(memory_format=last)
    # A contiguous map is turned once on its way in, and once on its way out.
    model, x = convolutional(), torch.randn(SHAPE)
    fast = bnn_ext.convert(model, x, verify=False)
    assert copies_of(fast, x) <= 2
    assert fast(x).is_contiguous()


# --- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@torch.no_grad()
def test_compile(backend, real_layers):
    torch._dynamo.reset()
    fast = converted(classifier(), real_layers)
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    for shape in (SHAPE, (4, *SHAPE[1:])):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), fast(x))


_RUN = """
import sys
import torch
import bnn_ext
package, inputs, expected = sys.argv[1:]
model = torch._inductor.aoti_load_package(package)
for x, y in zip(torch.load(inputs), torch.load(expected)):
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
print("same")
"""


@torch.no_grad()
def test_export_and_compile_ahead_of_time(tmp_path):
    """In a fresh process that knows the operators and nothing of the model."""
    fast = converted(classifier(), "fused")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        fast, (torch.randn(SHAPE),), dynamic_shapes={"inputs": ({0: batch},)}
    )
    inputs = [torch.randn(SHAPE), torch.randn(5, *SHAPE[1:])]
    expected = [fast(x) for x in inputs]
    for x, y in zip(inputs, expected, strict=True):
        assert torch.equal(program.module()(x), y)
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles sooner
    )
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.save(expected, tmp_path / "expected.pt")
    arguments = [package, str(tmp_path / "inputs.pt"), str(tmp_path / "expected.pt")]
    root = str(Path(bnn_ext.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, cwd=root
    )
    assert done.stdout.strip() == "same", done.stderr
