"""Mirror descent: real weights in (-1, 1) that multiplicative steps drive to ±1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bnn_ext.optim._base import ElementwiseOptimizer, require_number

_LOG_LARGEST = math.log(1e35)  # of the sharpness: times any weight it stays finite in float32
_TINY = 1e-20  # keeps the logarithm of 0 finite


class MirrorDescent(ElementwiseOptimizer):
    """Mirror descent in the direction d that Adam would take, with a growing sharpness b.

    The parameters hold relaxed weights w in [-1, 1] that the forward uses as they are, so layers
    have `weight_quantizer=None` in training; `optim.weights_as(model, "binary")` tests the signs on
    the way, and in the end `bnn.set_weight_quantizer(model, "ste_sign")` takes them. A parameter's
    value v when it is given to the optimizer becomes `w = tanh(b v)`.

    | mirror    | stable | state                | step                          | w                |
    | --------- | ------ | -------------------- | ----------------------------- | ---------------- |
    | "tanh"    | yes    | dual v               | v - lr d                      | tanh(b v)        |
    | "tanh"    | no     | w itself             | tanh(atanh(w) - lr b d)       |                  |
    | "softmax" | yes    | duals v of -1 and +1 | v - lr d [-1, +1]             | u = softmax(b v) |
    | "softmax" | no     | probabilities u      | u exp(-lr b d [-1, +1]) / sum |                  |

    With "softmax", `w = u[+1] - u[-1]`. For two values both mirrors define the same iterates up to
    rounding; but where a w of the unstable tanh has rounded to ±1 it hardly ever returns, while the
    smaller probability keeps its digits. The stable forms lose nothing and are what their authors
    recommend.

        binary, others = optim.split_parameters(model)
        optimizer = optim.Combined(
            optim.MirrorDescent(binary, growth=1.02, growth_interval=200), torch.optim.Adam(others)
        )

    Args:
        params: parameters or groups of them, as for optimizers of torch.
        lr: step size, at least 0.
        betas: decay of Adam's two means, in [0, 1).
        eps: Adam's, positive.
        mirror: "tanh" or "softmax".
        stable: whether dual variables carry the state ("MD-tanh-S", "MD-softmax-S").
        sharpness: b of the first step, positive.
        growth: factor of the sharpness, at least 1, up to 1e35 in all.
        growth_interval: number of steps after each of which the factor comes in again.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a parameter is complex or of integers.

    Source: Ajanthan, Gupta, Torr, Hartley, Dokania, "Mirror Descent View for Neural Network
    Quantization", 2021 (arXiv:1910.08237), the tanh and softmax projections and their numerically
    stable updates; directions and growth as in its code, kartikgupta-at-anu/md-bnn.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        mirror: str = "tanh",
        stable: bool = True,
        sharpness: float = 1.0,
        growth: float = 1.0,
        growth_interval: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "mirror": mirror,
            "stable": stable,
            "sharpness": sharpness,
            "growth": growth,
            "growth_interval": growth_interval,
        }
        super().__init__(params, defaults)

    def _check(self, settings: dict[str, Any]) -> None:
        require_number("lr", settings["lr"])
        for i, beta in enumerate(settings["betas"]):
            require_number(f"betas[{i}]", beta, high=1)
            if beta == 1:
                raise ValueError(f"betas[{i}] must be below 1, found {beta}")
        require_number("eps", settings["eps"], above=True)
        require_number("sharpness", settings["sharpness"], above=True)
        require_number("growth", settings["growth"], low=1)
        require_number("growth_interval", settings["growth_interval"], low=1)
        if settings["mirror"] not in _MIRRORS:
            raise ValueError(
                f"mirror must be one of {', '.join(_MIRRORS)}, found {settings['mirror']!r}"
            )

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        mirror = _MIRRORS[group["mirror"]]
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        dual = mirror.lift(parameter)
        relaxed = mirror.relax(group["sharpness"] * dual)
        state["point"] = dual if group["stable"] else relaxed
        parameter.copy_(mirror.weight(relaxed))

    def _update(
        self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        mirror = _MIRRORS[group["mirror"]]
        sharpness = _sharpness(group, state["step"])
        state["step"] += 1
        move = mirror.lift(group["lr"] * _adam_direction(grad, state, group))
        if group["stable"]:
            state["point"] -= move
            relaxed = mirror.relax(_sharpness(group, state["step"]) * state["point"])
        else:
            relaxed = mirror.relax(mirror.unrelax(state["point"]) - sharpness * move)
            state["point"].copy_(relaxed)
        parameter.copy_(mirror.weight(relaxed))


class _Tanh:
    """w = tanh(v)."""

    @staticmethod
    def lift(x: Tensor) -> Tensor:
        """A weight, or a change of one, as dual variables."""
        return x.clone()

    @staticmethod
    def relax(dual: Tensor) -> Tensor:
        return torch.tanh(dual)

    @staticmethod
    def unrelax(relaxed: Tensor) -> Tensor:
        return (torch.log(1 + relaxed + _TINY) - torch.log(1 - relaxed + _TINY)) / 2

    @staticmethod
    def weight(relaxed: Tensor) -> Tensor:
        return relaxed


class _Softmax:
    """w = u[1] - u[0] of u = softmax(v), the probabilities of -1 and +1."""

    @staticmethod
    def lift(x: Tensor) -> Tensor:
        return torch.stack([-x, x])

    @staticmethod
    def relax(dual: Tensor) -> Tensor:
        return torch.softmax(dual, 0)

    @staticmethod
    def unrelax(relaxed: Tensor) -> Tensor:
        return torch.log(relaxed)  # up to a constant, which softmax takes out again

    @staticmethod
    def weight(relaxed: Tensor) -> Tensor:
        return relaxed[1] - relaxed[0]


_MIRRORS: dict[str, type[_Tanh] | type[_Softmax]] = {"tanh": _Tanh, "softmax": _Softmax}


def _sharpness(group: dict[str, Any], steps: int) -> float:
    """The sharpness after a number of steps; by logarithms, since the power would overflow."""
    grown = steps // group["growth_interval"] * math.log(group["growth"])
    return math.exp(min(math.log(group["sharpness"]) + grown, _LOG_LARGEST))


def _adam_direction(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's step of length 1 for the gradient; updates its two means."""
    beta1, beta2 = group["betas"]
    mean = state["exp_avg"].lerp_(grad, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    mean = mean / (1 - beta1 ** state["step"])
    return mean / ((square / (1 - beta2 ** state["step"])).sqrt() + group["eps"])
