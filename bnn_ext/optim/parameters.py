"""Which parameters an optimizer gets, and what happens to them around its step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnn_ext import nn as bnn
from bnn_ext.optim._base import at_least_one


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The binary weights of a model, as `bnn.binary_parameters` finds them, and all the others.

        binary, others = optim.split_parameters(model)

    Raises:
        ValueError: `model` holds no binary layer.

    Source: Bop (arXiv:1906.02107) and BNEW, which train the two by different rules.
    """
    binary = bnn.binary_parameters(model)
    known = set(binary)
    return binary, [parameter for parameter in model.parameters() if parameter not in known]


def glorot_groups(model: nn.Module, lr: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups that give binary weights BinaryConnect's larger learning rates.

    A weight of n inputs and m outputs learns at `lr * sqrt((n + m) / 1.5)`, the inverse of Glorot's
    bound of its initial values; all other parameters learn at `lr`. For a convolution, n and m
    count the positions of the kernel. Since the steps of torch's optimizers are proportional to
    their learning rate (but for Rprop's), this is the code's `w + scale * (w' - w)` with w' the
    optimizer's new weight.

        optimizer = torch.optim.Adam(optim.glorot_groups(model, lr=1e-3))
        bnn.clip_weights(optimizer, model)

    Args:
        model: holds at least one binary layer.
        lr: of the parameters without a factor; None leaves it to a `RegimeOptimizer`, which minds
            the groups' `lr_scale` as no other does.

    Returns:
        Groups of the weights with the same factor, then one of all other parameters, if there are;
        each with its factor as `lr_scale`.

    Raises:
        ValueError: `model` holds no binary layer.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015 (arXiv:1511.00363), section 2.5,
    and `W_LR_scale="Glorot"` of its code.
    """
    binary, others = split_parameters(model)
    by_scale: dict[float, list[Tensor]] = {}
    for weight in binary:
        inputs, outputs = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
        by_scale.setdefault(math.sqrt((inputs + outputs) / 1.5), []).append(weight)
    if others:
        by_scale.setdefault(1.0, []).extend(others)
    groups: list[dict[str, Any]] = [
        {"params": params, "lr_scale": scale} for scale, params in by_scale.items()
    ]
    if lr is not None:
        for group in groups:
            group["lr"] = lr * group["lr_scale"]
    return groups


def project(
    optimizer: torch.optim.Optimizer,
    params: Iterable[Tensor],
    projection: Callable[[Tensor], Tensor],
) -> RemovableHandle:
    """Replaces parameters by their projection, now and after every step.

        optim.project(optimizer, weights, optim.centered)                      # XNOR-Net's weights
        optim.project(optimizer, scales, lambda scale: scale.clamp(min=0.01))  # its BatchNorms'

    Several projections take place in the order in which they were made.

    Args:
        optimizer: the one that updates the parameters.
        params: at least one.
        projection: Tensor -> Tensor of the same shape.

    Returns:
        The handle of the optimizer's hook.

    Raises:
        ValueError: there is no parameter.

    Source: projected gradient descent; `bnn.clip_weights` is the one that most methods need.
    """
    params = at_least_one(params)

    @torch.no_grad()
    def hook(*_: Any) -> None:
        for parameter in params:
            parameter.copy_(projection(parameter))

    hook()
    return optimizer.register_step_post_hook(hook)


def centered(weight: Tensor) -> Tensor:
    """A weight `[out, in, ...]` less its mean over the inputs, for every output and position.

    Source: Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net", 2016 (arXiv:1603.05279), as
    jiecaoyu/XNOR-Net-PyTorch does before it binarizes.
    """
    return weight - weight.mean(1, keepdim=True)


def scale_gradients(
    params: Iterable[Tensor], factor: Callable[[Tensor], float]
) -> list[RemovableHandle]:
    """Multiplies the gradients of parameters by a factor of each, from the next backward pass on.

    Adam does not mind factors, but for its eps and for weight decay, which they outweigh.

        optim.scale_gradients(bnn.binary_parameters(model), optim.xnor_gradient_factor)

    Args:
        params: at least one.
        factor: from the parameter to its factor.

    Returns:
        The handles of the parameters' hooks.

    Raises:
        ValueError: there is no parameter.

    Source: XNOR-Net's training, see `xnor_gradient_factor`.
    """

    def times(value: float) -> Callable[[Tensor], Tensor]:
        return lambda grad: grad * value

    return [parameter.register_hook(times(factor(parameter))) for parameter in at_least_one(params)]


def xnor_gradient_factor(weight: Tensor) -> float:
    """`(1 - 1 / in) * n` of a weight `[out, in, ...]` with n numbers for each output.

    Source: jiecaoyu/XNOR-Net-PyTorch, `updateBinaryGradWeight`; on ImageNet it takes 1e9 for n.
    """
    return (1 - 1 / weight.shape[1]) * weight[0].numel()
