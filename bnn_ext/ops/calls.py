"""How a wrapper calls its kernel: at once where the kernel can check the arguments itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked_by(kernel: Callable[..., _R]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Lets a kernel with the arguments of the wrapper check them first.

    It does so in less time than Python needs, which counts where a layer takes as long as these
    checks; but it names less. So where it refuses, the wrapper is called, to say what is wrong.
    """

    def decorate(wrapper: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(wrapper)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if runs_now(args, kwargs):
                try:
                    result = kernel(*args, **kwargs)
                except (RuntimeError, TypeError, ValueError):
                    pass
                else:
                    if _is_on_cpu(result):
                        return result
            return wrapper(*args, **kwargs)

        return call

    return decorate


def checked_by_kernel(wrapper: Callable[_P, _R]) -> Callable[_P, _R]:
    """`checked_by` the operator of the wrapper's name: their schemas have the same arguments."""
    return checked_by(getattr(torch.ops.bnn_ext, wrapper.__name__).default)(wrapper)


def runs_now(
    args: Sequence[Any], kwargs: dict[str, Any], devices: tuple[str, ...] = ("cpu",)
) -> bool:
    """Whether a kernel will run on `devices`: nothing is traced or faked, no gradient is asked."""
    input = args[0] if args else None
    if isinstance(input, (tuple, list)) and input:
        input = input[0]
    if not isinstance(input, Tensor) or type(input) not in (Tensor, nn.Parameter):
        return False
    if input.device.type not in devices or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and _requires_grad((*args, *kwargs.values())))


def _is_on_cpu(result: Any) -> bool:
    """Whether a CPU kernel ran: an argument on another device lets another one run, if any."""
    if isinstance(result, tuple):
        result = result[0] if result[1] is None else result[1]
    return bool(result.is_cpu)


def _requires_grad(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_requires_grad, value))
    return isinstance(value, Tensor) and value.requires_grad
