"""Weights that are quantized outside of the forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bnn_ext import quantizers
from bnn_ext.optim._base import at_least_one, before_update
from bnn_ext.quantizers import Quantizer


class LatentWeights:
    """Keeps latent weights beside a model whose own parameters are quantized between all steps.

    So any float model trains with binary weights, without a layer of this package:

        weights = [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]
        optimizer = torch.optim.Adam(model.parameters())
        optim.project(optimizer, weights, optim.centered)       # of latent weights: before the next
        bnn.clip_weights(optimizer, weights)
        latent = optim.LatentWeights(optimizer, weights, "xnor_sign")
        ...forward, backward, optimizer.step() as always...

    The gradients of the quantized weights become those of the latent ones right before the
    optimizer's update, by the quantizer's own rule; the update and the projections made before act
    on the latent weights, which are then quantized anew. The values are those of a binary layer
    with this `weight_quantizer`. The model's state_dict holds the quantized weights, so a
    checkpoint needs the state_dict of this object as well.

    Args:
        optimizer: the one that updates the weights.
        params: the weights, at least one; they hold the latent values.
        quantizer: name or callable of `bnn_ext.quantizers`, one that draws no random numbers, or
            `stochastic_sign`.

    Raises:
        ValueError: there is no weight, or the quantizer's name is unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net", 2016 (arXiv:1603.05279), algorithm 1,
    as jiecaoyu/XNOR-Net-PyTorch trains it (with `xnor_sign`); the straight-through baseline of
    BNEW's authors (with `identity_sign`).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Iterable[Tensor],
        quantizer: str | Quantizer,
    ) -> None:
        self._params = at_least_one(params)
        self._quantizer = quantizers.get(quantizer)
        self.latent = [parameter.detach().clone() for parameter in self._params]
        self._quantize()
        self._handles = [
            before_update(optimizer, self._to_latent),
            optimizer.register_step_post_hook(self._from_latent),
        ]

    def remove(self) -> None:
        """Ends it: the parameters hold the latent weights again."""
        for handle in self._handles:
            handle.remove()
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """The latent weights, in the order of the parameters."""
        return {"latent": self.latent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over latent weights and quantizes them into the model.

        Raises:
            ValueError: they do not have the shapes of the parameters.
        """
        found = [list(latent.shape) for latent in state_dict["latent"]]
        expected = [list(parameter.shape) for parameter in self._params]
        if found != expected:
            raise ValueError(f"latent must have the shapes {expected}, found {found}")
        for own, latent in zip(self.latent, state_dict["latent"], strict=True):
            own.copy_(latent)
        self._quantize()

    def _to_latent(self) -> None:
        for parameter, latent in zip(self._params, self.latent, strict=True):
            if parameter.grad is not None:
                leaf = latent.clone().requires_grad_()
                with torch.enable_grad():
                    value = self._quantizer(leaf)
                (grad,) = torch.autograd.grad(value, leaf, parameter.grad)
                parameter.grad.copy_(grad)
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, latent in zip(self._params, self.latent, strict=True):
            parameter.copy_(latent)

    def _from_latent(self, *_: Any) -> None:
        for parameter, latent in zip(self._params, self.latent, strict=True):
            latent.copy_(parameter.detach())
        self._quantize()

    @torch.no_grad()
    def _quantize(self) -> None:
        for parameter, latent in zip(self._params, self.latent, strict=True):
            parameter.copy_(self._quantizer(latent))
