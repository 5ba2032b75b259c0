"""Bop, the binary optimizer without latent weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bnn_ext.optim._base import ElementwiseOptimizer, require_number
from bnn_ext.quantizers import sign


class Bop(ElementwiseOptimizer):
    """Flips a binary weight where the mean of its gradients has asked for it long enough.

        m <- (1 - lr) m + lr g;   w <- -w where w m > threshold

    The weights themselves are ±1: parameters become their signs when they are given to Bop, and
    nothing needs to be clipped. Real parameters need an optimizer of their own:

        binary, others = optim.split_parameters(model)
        optimizer = optim.Combined(optim.Bop(binary), torch.optim.Adam(others, lr=1e-2))

    Args:
        params: parameters or groups of them, as for optimizers of torch.
        lr: the adaptivity rate gamma in [0, 1], under the name that all schedulers of torch know.
        threshold: tau, at least 0; a mean of exactly this magnitude does not flip.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a parameter is complex or of integers.

    Source: Helwegen, Widdicombe, Geiger, Liu, Cheng, Nusselder, "Latent Weights Do Not Exist:
    Rethinking Binarized Neural Network Optimization", 2019 (arXiv:1906.02107), algorithm 1; the
    default settings are those of its section 5.2.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-4, threshold: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def _check(self, settings: dict[str, Any]) -> None:
        require_number("lr", settings["lr"], high=1)
        require_number("threshold", settings["threshold"])

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        parameter.copy_(sign(parameter))
        state["exp_avg"] = torch.zeros_like(parameter)

    def _update(
        self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        mean = state["exp_avg"].lerp_(grad, group["lr"])
        signs = sign(parameter)  # of weights that something else wrote since, too
        flips = signs * mean > group["threshold"]
        parameter.copy_(signs * (1 - 2 * flips.to(signs.dtype)))
