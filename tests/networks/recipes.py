"""Random parameters and a short training for every network, whatever way its origin trains it."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Recipe:
    """How an origin trains: by default Adam and cross-entropy on the latent weights, no more.

    Every module of this package that defines a network has its own, by the name RECIPE.
    """

    learning_rate = 0.01

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.learning_rate)

    def backward(self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor) -> float:
        """Forward and backward; gives the loss."""
        loss = self.loss(first_output(model(*inputs)), labels)
        loss.backward()
        return loss.item()

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """What follows the backward: the optimizer's step, and what the origin does around it."""
        optimizer.step()

    def deploy(self, model: nn.Module) -> None:
        """Leaves the weights as they are when the model is used, where forward does not do so."""


def first_output(output: Tensor | dict[str, Tensor]) -> Tensor:
    """The logits: the output itself, or the first of several."""
    return next(iter(output.values())) if isinstance(output, dict) else output


@torch.no_grad()
def randomize(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> nn.Module:
    """Random parameters, and statistics of what `inputs` give, so that no bit is constant.

    Scales have both signs, and some are 0, as trained ones may be. The model is in eval mode then.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _randomize(module, name, parameter)
        _recipe(model).deploy(model)
        return _calibrated(model, inputs)


def train_briefly(
    model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, steps: int
) -> list[float]:
    """Trains on this one batch the way the origin does; the loss before each step.

    The model is in eval mode then, with the batch's statistics: a few steps leave BatchNorm's
    running ones far behind.
    """
    recipe = _recipe(model)
    optimizer = recipe.optimizer(model)
    model.train()
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(recipe.backward(model, inputs, labels))
            recipe.update(model, optimizer)
        with torch.no_grad():
            recipe.deploy(model)
            _calibrated(model, inputs)
    return losses


def _recipe(model: nn.Module) -> Recipe:
    return sys.modules[type(model).__module__].RECIPE


def _randomize(module: nn.Module, name: str, parameter: Tensor) -> None:
    if name in ("bias", "beta"):
        parameter.uniform_(-1, 1)
    elif isinstance(module, nn.PReLU):
        parameter.uniform_(0.05, 0.9)
    elif isinstance(module, _BatchNorm) or name in ("gamma", "scale"):
        parameter.normal_()
        parameter[torch.rand_like(parameter) < 0.05] = 0
    elif name == "weights":  # latent ones that start at one sign
        parameter.uniform_(-1, 1)


def _calibrated(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """In eval mode, every BatchNorm with the statistics of this batch."""
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
