"""What `python -m bnn_ext` prints: what is installed here, and whether it computes rightly."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from importlib.util import find_spec

import torch

import bnn_ext
from bnn_ext import ops, reference
from bnn_ext._extension import _C, has_cuda

_EXTRAS = {
    "train": ("lightning", "torchmetrics", "torchvision"),
    "demo": ("lightning", "torchmetrics", "torchvision", "matplotlib", "sklearn"),
    "bench": ("matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino"),
}


def main() -> int:
    """Prints versions, kernels, devices and a self-test; returns 0 if all of it passed, else 1."""
    for title, text in _installed():
        print(f"{title:<14}{text}")
    print("\nself-test     packed linear and conv2d against plain torch, exactly")
    passed = True
    for name, failure in self_test():
        print(f"  {name:<16}{'OK' if failure is None else f'FAILED: {failure}'}")
        passed = passed and failure is None
    return 0 if passed else 1


def self_test() -> Iterator[tuple[str, str | None]]:
    """Runs operators on every CPU level and GPU.

    Yields:
        The name of the level or device, and None if all was equal, else what was wrong.
    """
    level_in_use = _C.cpu_capability()
    try:
        for level in _C.cpu_capabilities():
            _C.set_cpu_capability(level)
            yield level, _failure(torch.device("cpu"))
    finally:
        _C.set_cpu_capability(level_in_use)
    if has_cuda:
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}", _failure(torch.device("cuda", index))


def _failure(device: torch.device) -> str | None:
    generator = torch.Generator().manual_seed(0)

    def bits(*shape: int) -> torch.Tensor:
        return ops.pack(torch.randn(*shape, generator=generator))

    # Sizes that fill neither whole words nor whole vectors of them.
    rows, matrix = bits(3, 200), bits(70, 200)
    maps, kernels = bits(2, 7, 9, 45), bits(35, 3, 3, 45)
    try:
        linear = ops.linear(rows.to(device), matrix.to(device), 200)
        conv2d = ops.conv2d(maps.to(device), kernels.to(device), 45, stride=2, padding=1)
    except Exception as error:  # whatever it is, it is the finding
        return str(error).splitlines()[0]
    if not torch.equal(linear.cpu(), reference.linear(rows, matrix, 200)):
        return "linear gave wrong sums"
    if not torch.equal(conv2d.cpu(), reference.conv2d(maps, kernels, 45, (2, 2), (1, 1))):
        return "conv2d gave wrong sums"
    return None


def _installed() -> Iterator[tuple[str, str]]:
    yield "bnn_ext", bnn_ext.__version__
    yield "Python", platform.python_version()
    yield "PyTorch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"
    yield "CPU level", f"{_C.cpu_capability()}; this CPU runs {', '.join(_C.cpu_capabilities())}"
    yield "CUDA kernels", _cuda_kernels()
    yield "CUDA devices", _cuda_devices()
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        text = f"lacks {', '.join(missing)}: pip install 'bnn_ext[{extra}]'"
        yield f"extra {extra}", text if missing else "installed"


def _cuda_kernels() -> str:
    if torch.version.cuda is None:
        return "not used: this PyTorch is built without CUDA"
    if not has_cuda:
        return "not built: nvcc and a CUDA build of torch were not found at installation"
    architectures = importlib.import_module("bnn_ext._C_cuda").architectures()
    return f"built for compute capabilities {architectures.replace(';', ', ')}"


def _cuda_devices() -> str:
    devices = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        devices.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor})")
    return ", ".join(devices) or "none"
