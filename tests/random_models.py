"""Random Sequentials of binary layers, with statistics that make every channel interesting.

Layers are drawn one by one and run on a batch as they come, so that shapes fit and BatchNorm's
running statistics lie among the values that really occur: channels flip both ways. Some means are
such values exactly, with no bias, so that sums fall right on the threshold.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

from bnn_ext import nn as bnn

WIDTHS = (1, 2, 5, 16, 31, 32, 33, 47, 64, 65)
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


class RandomModel:
    """A drawn model in eval mode and the batch it was drawn on."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        torch.manual_seed(seed)
        batch = self._draw.randint(1, 3)
        is_map = self._draw.random() < 0.75
        if is_map:
            size = (self._draw.randint(5, 12), self._draw.randint(5, 12))
            self.input = torch.randn(batch, self._draw.choice((1, 3, 33)), *size)
            if self._draw.random() < 0.4:
                self.input = self.input.to(memory_format=torch.channels_last)
        else:
            self.input = torch.randn(batch, self._draw.choice(WIDTHS))
        self._x = self.input
        self._layers: list[nn.Module] = []
        with torch.no_grad():
            if is_map:
                self._maps()
            if not is_map or self._draw.random() < 0.7:
                self._rows(flatten=is_map)
            self._tail()
        self.model = self._nest(self._layers).eval()

    # --- parts ------------------------------------------------------------------------------------

    def _maps(self) -> None:
        for i in range(self._draw.randint(1, 4)):
            self._try(lambda first=i == 0: self._conv(first))
            self._between()

    def _rows(self, flatten: bool) -> None:
        if flatten:
            self._add(nn.Flatten())
        for i in range(self._draw.randint(1, 3)):
            self._add(
                bnn.BinaryLinear(
                    self._x.shape[1],
                    self._draw.choice(WIDTHS),
                    self._coin(),
                    **self._quantizers(first=i == 0 and not flatten),
                )
            )
            self._between()

    def _tail(self) -> None:
        if self._x.dim() == 2 and self._coin():
            self._add(self._batch_norm())
        if self._x.dim() == 2 and self._coin():
            self._add(nn.LogSoftmax(1))

    def _between(self) -> None:
        """What stands between two binary layers, in any order."""
        choices: list[Callable[[], nn.Module]] = [
            self._batch_norm,
            self._activation,
            lambda: self._draw.choice((nn.Dropout(0.3), nn.Identity())),
        ]
        if self._x.dim() == 4:
            choices += [self._pool, self._pool]
        if self._coin(0.25):
            choices.append(self._batch_norm)
        self._draw.shuffle(choices)
        for choice in choices:
            if self._coin(0.7):
                self._try(choice)

    # --- layers -----------------------------------------------------------------------------------

    def _quantizers(self, first: bool) -> dict[str, str | None]:
        real = first and self._coin()
        return {
            "input_quantizer": None if real else self._draw.choice(("ste_sign", "approx_sign")),
            "weight_quantizer": self._draw.choice(("ste_sign", "magnitude_aware_sign")),
        }

    def _conv(self, first: bool) -> nn.Module:
        channels = self._x.shape[1]
        groups = self._draw.choice([g for g in (1, 1, 2, 3, 11, channels) if channels % g == 0])
        out = self._draw.choice(WIDTHS)
        out = max(groups, out - out % groups)
        kernel = (self._draw.randint(1, 5), self._draw.randint(1, 5))
        padding = self._draw.choice(["same", "valid", *[self._pair(0, 2) for _ in range(4)]])
        stride = (1, 1) if padding == "same" else self._pair(1, 2)
        return bnn.BinaryConv2d(
            channels,
            out,
            kernel,
            stride,
            padding,
            self._pair(1, 2),
            groups,
            self._coin(),
            pad_value=self._draw.choice((-1, 0, 1)),
            **self._quantizers(first),
        )

    def _pool(self) -> nn.Module:
        """Windows that fit into the map and never hold padding alone, which torch pools to -inf."""
        size = min(self._x.shape[2:])
        kernel = self._pair(1, min(3, size))
        return nn.MaxPool2d(
            kernel,
            self._draw.choice((None, self._pair(1, 3))),
            tuple(self._draw.randint(0, k // 2) for k in kernel),
            self._draw.choice((1, 1, 2)) if size >= 5 else 1,
            ceil_mode=self._coin(),
        )

    def _activation(self) -> nn.Module:
        channels = self._x.shape[1]
        slopes = nn.PReLU(self._draw.choice((1, channels)))
        slopes.weight.copy_(torch.rand_like(slopes.weight) - (0.3 if self._coin(0.2) else 0))
        narrow = float(self._x.std(unbiased=False)) / 4 + 0.1
        return self._draw.choice(
            (
                nn.Hardtanh(),
                nn.Hardtanh(-narrow, narrow / 2, inplace=True),
                nn.ReLU(inplace=self._coin()),
                nn.ReLU6(),
                nn.LeakyReLU(self._draw.choice((0.1, 0.1, -0.1))),
                slopes,
            )
        )

    def _batch_norm(self) -> nn.Module:
        channels = self._x.shape[1]
        norm = _NORMS[self._x.dim()](channels, eps=self._draw.choice((1e-5, 1e-3)))
        values = self._x.transpose(0, 1).flatten(1)  # [channels, what occurs there]
        chosen = torch.randint(values.shape[1], (channels, 1))
        norm.running_mean.copy_(values.gather(1, chosen).squeeze(1))
        norm.running_var.copy_(values.var(1, unbiased=False) * (0.5 + torch.rand(channels)))
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels) * 0.3 * (torch.rand(channels) < 0.6))
        norm.weight[torch.rand(channels) < 0.05] = 0
        norm.weight[torch.rand(channels) < 0.05] *= 1e-30
        return norm

    # --- helpers ----------------------------------------------------------------------------------

    def _coin(self, probability: float = 0.5) -> bool:
        return self._draw.random() < probability

    def _pair(self, low: int, high: int) -> tuple[int, int]:
        return self._draw.randint(low, high), self._draw.randint(low, high)

    def _add(self, layer: nn.Module) -> None:
        self._x = layer.eval()(self._x.clone())  # a clone, for layers that work in place
        self._layers.append(layer)

    def _try(self, make: Callable[[], nn.Module]) -> None:
        """Adds what `make` draws once it fits; a window can be larger than the map."""
        for _ in range(20):
            try:
                return self._add(make())
            except RuntimeError as error:
                assert "size" in str(error), error

    def _nest(self, layers: list[nn.Module]) -> nn.Sequential:
        """The same layers, some of them in Sequentials within the Sequential."""
        children, rest = [], layers
        while rest:
            count = self._draw.randint(1, len(rest))
            head, rest = rest[:count], rest[count:]
            nested = count < len(layers) and self._coin()
            children.extend([self._nest(head)] if nested else head)
        return nn.Sequential(*children)
