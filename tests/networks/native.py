"""How networks of this package's layers train: latent weights clipped after every step."""

from __future__ import annotations

import torch
from torch import nn

from bnn_ext import nn as bnn
from networks.recipes import Recipe


class NativeRecipe(Recipe):
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().optimizer(model)
        bnn.clip_weights(optimizer, model)
        return optimizer
