"""Random models of binary layers, with statistics that make every channel interesting.

`RandomModel` is a Sequential of Sequentials; `RandomGraph` any graph of layers: branches that meet
in sums and concatenations, channels that are split and shuffled, several heads. Layers are drawn
one by one and run on a batch as they come, so that shapes fit and BatchNorm's running statistics
lie among the values that really occur: channels flip both ways. Some means are such values exactly,
with no bias, so that sums fall right on the threshold.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn

WIDTHS = (1, 2, 5, 16, 31, 32, 33, 47, 64, 65)
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


class _Drawing:
    """Layers that fit behind `_x`, a value of the model that is being drawn."""

    _x: Tensor

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        torch.manual_seed(seed)

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

    def _coin(self, probability: float = 0.5) -> bool:
        return self._draw.random() < probability

    def _pair(self, low: int, high: int) -> tuple[int, int]:
        return self._draw.randint(low, high), self._draw.randint(low, high)


class RandomModel(_Drawing):
    """A drawn model in eval mode and the batch it was drawn on."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
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

    # --- helpers ----------------------------------------------------------------------------------

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


# --- graphs ---------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Steps in running order, each with the values that it takes; the first value is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.sources: list[tuple[int, ...]] = []
        self.outputs: list[int] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step, sources in zip(self.steps, self.sources, strict=True):
            values.append(step(*(values[i] for i in sources)))
        return tuple(values[i] for i in self.outputs)


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Concat(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)


class Part(nn.Module):
    """Some of the channels, by one of the spellings for it."""

    def __init__(self, first: int, count: int, spelling: str) -> None:
        super().__init__()
        self.first, self.count, self.spelling = first, count, spelling

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "slice":
            return x[:, self.first : self.first + self.count]
        if self.spelling == "narrow":
            return x.narrow(1, self.first, self.count)
        rest = x.shape[1] - self.first - self.count
        return torch.split(x, [self.first, self.count, rest], dim=1)[1]


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class RandomGraph(_Drawing):
    """A drawn graph of layers, which gives a tuple, in eval mode; and the batch it was drawn on."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.input = torch.randn(
            self._draw.randint(1, 3), self._draw.choice((1, 3, 16, 33)), *self._pair(4, 9)
        )
        if self._coin(0.3):
            self.input = self.input.to(memory_format=torch.channels_last)
        self.model = Graph().eval()
        self._values = [self.input]
        units = (self._plain, self._residual, self._residual, self._dense, self._split)
        with torch.no_grad():
            x = self._stem(0)
            for _ in range(self._draw.randint(1, 3)):
                x = self._draw.choice(units)(x)
            for _ in range(self._draw.choice((1, 1, 1, 2))):
                self.model.outputs.append(self._head(x))

    # --- units: from the index of a value to that of another --------------------------------------

    def _stem(self, x: int) -> int:
        channels, width = self._channels(x), self._draw.choice((4, 6, 16, 33))
        if self._coin(0.3):
            return x
        if self._coin():
            x = self._add(nn.Conv2d(channels, width, 3, padding=1, bias=self._coin()), x)
        else:
            x = self._add(self._same_conv(channels, width, input_quantizer=None), x)
        return self._between(x)

    def _plain(self, x: int) -> int:
        self._x = self._values[x]
        try:
            x = self._add(self._conv(first=False), x)
        except RuntimeError as error:  # a window larger than the map
            assert "size" in str(error), error
        return self._between(x)

    def _residual(self, x: int) -> int:
        """A branch and a shortcut, which changes what the branch changes."""
        channels = self._channels(x)
        width = self._draw.choice((channels, channels, 8, 21))
        stride = self._draw.choice((1, 1, 2))
        branch = self._add(self._same_conv(channels, width, stride), self._before(x))
        branch = self._between(branch, keep_size=True)
        if self._coin(0.3):
            branch = self._add(self._same_conv(width, width), branch)
            branch = self._between(branch, keep_size=True)
        shortcut = x
        if stride == 2 and (self._coin() or width == channels):
            shortcut = self._add(nn.AvgPool2d(2, ceil_mode=True), shortcut)
            stride = 1
        if width != channels or stride == 2:
            if self._coin():
                conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            else:
                conv = bnn.BinaryConv2d(channels, width, 1, stride, bias=False)
            shortcut = self._norm(self._add(conv, shortcut))
        pair = [branch, shortcut]
        self._draw.shuffle(pair)
        x = self._add(Add(), *pair)
        return self._between(x, keep_size=True) if self._coin() else x

    def _dense(self, x: int) -> int:
        """What came before, and beside it what a layer makes of it."""
        channels, width = self._channels(x), self._draw.choice((3, 8, 13))
        new = self._add(self._same_conv(channels, width), self._before(x))
        if self._coin():
            new = self._between(new, keep_size=True)
        parts = [x, new]
        self._draw.shuffle(parts)
        if self._coin(0.2):
            parts.append(self._draw.choice(parts))
        return self._add(Concat(), *parts)

    def _split(self, x: int) -> int:
        """One part of the channels passes by, and all are shuffled."""
        channels = self._channels(x)
        if channels < 2:
            return self._plain(x)
        cut = channels // 2 if self._coin() else self._draw.randint(1, channels - 1)
        spelling = self._draw.choice(("slice", "narrow", "split"))
        left = self._add(Part(0, cut, spelling), x)
        right = self._add(Part(cut, channels - cut, spelling), x)
        right = self._add(self._same_conv(channels - cut, channels - cut), right)
        right = self._between(right, keep_size=True)
        if self._coin(0.3):
            left = self._between(left, keep_size=True)
        parts = [left, right]
        self._draw.shuffle(parts)
        x = self._add(Concat(), *parts)
        groups = [g for g in (2, 3, 4) if channels % g == 0]
        if groups and self._coin(0.7):
            x = self._add(Shuffle(self._draw.choice(groups)), x)
        return x

    def _head(self, x: int) -> int:
        draw = self._draw.random()
        if draw < 0.15:
            return x
        if draw < 0.5:
            x = self._add(nn.AdaptiveAvgPool2d(1), x) if self._coin() else self._add(Mean(), x)
            x = self._add(nn.Flatten(), x)
        else:
            if self._coin(0.3):
                x = self._norm(x)
            x = self._add(nn.Flatten(), x)
            width = self._draw.choice((5, 33))
            x = self._add(bnn.BinaryLinear(self._channels(x), width, self._coin()), x)
            x = self._between(x)
        kind = self._draw.choice((bnn.BinaryLinear, nn.Linear))
        x = self._add(kind(self._channels(x), 4), x)
        return self._norm(x) if self._coin(0.3) else x

    # --- helpers ----------------------------------------------------------------------------------

    def _channels(self, x: int) -> int:
        return self._values[x].shape[1]

    def _same_conv(
        self, channels: int, width: int, stride: int = 1, **quantizers: None
    ) -> nn.Module:
        """A binary convolution that keeps the size of the map, or halves it."""
        groups = self._draw.choice(
            [g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0 and width % g == 0]
        )
        kernel, dilation = self._draw.choice(((1, 1), (3, 1), (3, 1), (3, 2), (5, 1)))
        return bnn.BinaryConv2d(
            channels,
            width,
            kernel,
            stride,
            dilation * (kernel // 2),
            dilation,
            groups,
            self._coin(),
            pad_value=self._draw.choice((0, 0, -1, 1)),
            **(self._quantizers(first=False) | quantizers),
        )

    def _before(self, x: int) -> int:
        """What stands in front of a layer, with values of its own."""
        draw = self._draw.random()
        if draw < 0.3:
            return self._norm(x)
        return self._add(self._learnable(bnn.LearnableBias, x), x) if draw < 0.5 else x

    def _norm(self, x: int) -> int:
        self._x = self._values[x]
        return self._add(self._batch_norm(), x)

    def _learnable(self, kind: type[nn.Module], x: int) -> nn.Module:
        module = kind(self._channels(x))
        for parameter in module.parameters():
            parameter.normal_()
        return module

    def _between(self, x: int, keep_size: bool = False) -> int:
        """What stands behind a layer, in any order."""
        choices: list[Callable[[int], nn.Module]] = [
            lambda x: self._batch_norm(),
            lambda x: self._activation(),
            lambda x: self._draw.choice(
                (nn.Dropout(0.3), nn.GELU(), nn.SiLU(), nn.Tanh(), bnn.RPReLU(self._channels(x)))
            ),
            lambda x: self._learnable(
                self._draw.choice((bnn.LearnableBias, bnn.LearnableScale)), x
            ),
        ]
        if self._values[x].dim() == 4 and not keep_size:
            choices.append(lambda x: self._pool())
        self._draw.shuffle(choices)
        for choice in choices:
            if self._coin(0.4):
                self._x = self._values[x]
                layer = choice(x)
                # A value that others see too, or part of one, must stay as it is.
                if getattr(layer, "inplace", False) and not self._is_own(x):
                    layer.inplace = False
                x = self._add(layer, x)
        return x

    def _is_own(self, x: int) -> bool:
        """Whether the value is new memory that nothing else takes."""
        used = any(x in sources for sources in self.model.sources)
        made = self.model.steps[x - 1] if x else None
        return not used and isinstance(
            made, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
        )

    def _add(self, layer: nn.Module, *sources: int) -> int:
        """The index of the value that the layer makes of others."""
        value = layer.eval()(*(self._values[i].clone() for i in sources))
        self._values.append(value)
        self.model.steps.append(layer)
        self.model.sources.append(sources)
        return len(self._values) - 1
