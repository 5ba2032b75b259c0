"""Where a network's time goes: by operator inside one call, and its real layers timed alone."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from measured_networks import layers_of, takes_signs
from timing import Implementation
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import summary

OURS = "bnn_ext::"  # the namespace of our operators
SMALL = 0.01  # shares below are summed up


class Part(NamedTuple):
    """What one call of an implementation spends on something."""

    implementation: str
    name: str
    count: int  # of what is summed up here
    seconds: float
    share: float


def shares(
    implementation: str, seconds: Mapping[str, Sequence[float]], small: float = SMALL
) -> list[Part]:
    """Parts of what they sum up to, the largest first, those below the share `small` as one."""
    total = sum(map(sum, seconds.values()))
    parts: dict[str, list[float]] = {}
    for name, times in sorted(seconds.items(), key=lambda part: -sum(part[1])):
        parts.setdefault(name if sum(times) >= small * total else "others", []).extend(times)
    return [
        Part(implementation, name, len(times), sum(times), sum(times) / total)
        for name, times in parts.items()
    ]


def profiled_parts(run: Callable[[], object], calls: int) -> list[Part]:
    """Where ours goes by torch's profiler: operators with their first input, and Python.

    The profiler makes every operator a few microseconds slower: shares count here, not times.
    """
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(calls):
            with torch.profiler.record_function("Python"):
                run()
    sums: dict[str, list[float]] = {"all our kernels": [], "all the rest": []}
    operators: dict[str, list[float]] = defaultdict(list)
    for event in profiler.key_averages(group_by_input_shape=True):
        mean = 1e-6 * event.self_cpu_time_total / event.count
        times = [mean] * (event.count // calls)
        shape = "x".join(map(str, event.input_shapes[0])) if event.input_shapes else ""
        operators[f"{event.key} {shape}".rstrip()] += times
        sums["all our kernels" if event.key.startswith(OURS) else "all the rest"] += times
    return [*shares("bnn_ext", sums, small=0), *shares("bnn_ext", operators)]


def real_layers(model: nn.Sequential, images: Tensor) -> list[Implementation]:
    """The layers with real weights and inputs, each group by torch alone, without the rest.

    What a network cannot do in bits: the stem in front of the first sign, the shortcuts, the head
    behind the last binary layer. A group without real products is left out.
    """
    binary = [i for i, layer in enumerate(model) if any(map(takes_signs, layer.modules()))]
    body = model[binary[0] : binary[-1] + 1]
    shortcuts = [layer.shortcut for layer in body.modules() if isinstance(layer, bnn.Residual)]
    groups = {
        "stem": [model[: binary[0]]],
        "shortcuts": shortcuts,
        "head": [model[binary[-1] + 1 :]],
    }
    implementations = []
    for name, modules in groups.items():
        calls = [
            functools.partial(module, _input_of(module, model, images))
            for module in modules
            if any(map(_is_real, module.modules()))
        ]
        if calls:
            of_one = sum(summary(call.func, call.args[0]).real_macs or 0 for call in calls)
            run = functools.partial(_run_all, calls)
            implementations.append(Implementation(name, "float32", run, len(images) * of_one))
    return implementations


def _is_real(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, nn.Linear)


def _run_all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _input_of(module: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    """What `module` reads when `model` runs on the images."""
    seen: list[Tensor] = []
    first = layers_of(module)[0]
    hook = first.register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    model(images)
    hook.remove()
    return seen[0]
