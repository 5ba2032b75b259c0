"""A branch and a shortcut that meet in a sum, the one thing a Sequential cannot say."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """`activation(branch(x) + shortcut(x))`.

    Binary networks live by their shortcuts: the real values that pass beside a binary layer carry
    what its signs lose.

    Shape: whatever the branch takes; branch and shortcut must give the same shape.

    Args:
        branch: what usually holds the binary layers.
        shortcut: the way around, by default x itself.
        activation: what follows the sum, by default nothing.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015
    (arXiv:1512.03385).
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))
