"""BNEW: real weights that a concave regularizer drives to ±1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bnn_ext import quantizers
from bnn_ext.optim._base import at_least_one, before_update, require_number
from bnn_ext.quantizers import Quantizer


class Bnew:
    """Phase 2 of BNEW: after each step, `w <- clamp(w + 2 s w, -1, 1)` with a growing strength s.

    This is a step along the concave regularizer `-s |w|^2`, decoupled from the optimizer's own. In
    epoch e of E, counted from 0, s is `strength * max(e, 1) / E`, at most 1. For the last epochs
    the weights become their signs and are frozen, while all other parameters go on learning.

    Layers have real weights in training, `weight_quantizer=None`. Both phases:

        weights = bnn.binary_parameters(model)
        adam = torch.optim.Adam(model.parameters(), lr=0.01)     # falling linearly to 0
        bnn.clip_weights(adam, weights)
        ...phase 1: some epochs of a plain loop...

        adam = torch.optim.Adam(model.parameters(), lr=0.01)     # falling linearly to 0
        bnew = optim.Bnew(adam, weights, epochs=1000, strength=1e-4)
        for epoch in range(1000):
            bnew.set_epoch(epoch)
            ...an epoch of a plain loop...
        bnn.set_weight_quantizer(model, "ste_sign")              # which changes nothing any more

    Args:
        optimizer: the one that updates the weights.
        params: the weights, at least one.
        epochs: E, positive.
        strength: lambda_0, at least 0.
        frozen_epochs: how many epochs at the end leave the weights frozen, at most `epochs`.
        quantizer: what freezes them: a name or callable; ImageNet's networks take
            "magnitude_aware_sign".

    Raises:
        ValueError: a setting is out of range, there is no weight, or the quantizer's name is
            unknown.
        TypeError: the quantizer is neither a name nor a callable.

    Source: Paren, Poudel, "Training Binarized Neural Networks the Easy Way", BMVC 2022, and its
    code, Alasdair-P/bnew. Its code for CIFAR clamps before the optimizer's step and so leaves the
    box by one step; this is the order of its code for ImageNet.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Iterable[Tensor],
        *,
        epochs: int,
        strength: float = 1e-4,
        frozen_epochs: int = 19,
        quantizer: str | Quantizer = "ste_sign",
    ) -> None:
        require_number("epochs", epochs, low=1)
        require_number("strength", strength)
        require_number("frozen_epochs", frozen_epochs, high=epochs)
        self._params = at_least_one(params)
        self._quantizer = quantizers.get(quantizer)
        self._epochs, self._initial_strength = epochs, strength
        self._first_frozen = epochs - frozen_epochs
        self.frozen = False
        self._handles = [
            before_update(optimizer, self._hold),
            optimizer.register_step_post_hook(self._pull),
        ]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Takes the strength of an epoch, counted from 0, and freezes the weights when it is time.

        Raises:
            ValueError: `epoch` is negative.
        """
        require_number("epoch", epoch)
        self.epoch = epoch
        self.strength = min(self._initial_strength * max(epoch, 1) / self._epochs, 1.0)
        if epoch >= self._first_frozen and not self.frozen:
            self.freeze()

    @torch.no_grad()
    def freeze(self) -> None:
        """Turns the weights into their signs, and lets no step change them from now on."""
        for weight in self._params:
            weight.copy_(self._quantizer(weight))
        self.frozen = True

    def remove(self) -> None:
        """Ends it: no more steps towards ±1, and frozen weights may change."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and whether the weights are frozen."""
        return {"epoch": self.epoch, "frozen": self.frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state_dict; the weights themselves come with the model's."""
        self.frozen = state_dict["frozen"]
        self.set_epoch(state_dict["epoch"])

    def _hold(self) -> None:
        if self.frozen:
            for weight in self._params:
                # Optimizers pass over what has no gradient. DDP would miss parameters that stopped
                # to require one.
                weight.grad = None

    @torch.no_grad()
    def _pull(self, *_: Any) -> None:
        if not self.frozen:
            for weight in self._params:
                weight.add_(weight, alpha=2 * self.strength).clamp_(-1, 1)
