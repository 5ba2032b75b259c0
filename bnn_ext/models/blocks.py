"""What the families of networks share: rows of layers, residual stages, checks of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn


def normalized(
    layer: nn.Linear | nn.Conv2d,
    *,
    pool: nn.Module | None = None,
    activation: nn.Module | None = None,
    **norm: Any,
) -> list[nn.Module]:
    """A layer, perhaps a max-pool, BatchNorm, perhaps an activation: BinaryNet's order.

    Pooling stands before BatchNorm, where it sees sums of many values and not clipped ones.

    Args:
        layer: linear or 2-d convolution, binary or not.
        pool, activation: left out if None.
        norm: settings of BatchNorm.
    """
    batch_norm: nn.Module
    if isinstance(layer, nn.Linear):
        batch_norm = nn.BatchNorm1d(layer.out_features, **norm)
    else:
        batch_norm = nn.BatchNorm2d(layer.out_channels, **norm)
    return [module for module in (layer, pool, batch_norm, activation) if module is not None]


def feedforward(
    convs: Iterable[nn.Conv2d],
    pools: Iterable[nn.Module | None],
    linears: Iterable[nn.Linear],
    activation: Callable[[], nn.Module],
    *,
    dropout: float | None = None,
    **norm: Any,
) -> list[nn.Module]:
    """Convolutions, a flatten and linear layers, each normalized and activated.

    Args:
        convs: in the order they run.
        pools: what follows each of them, None where nothing does.
        linears: the hidden ones; a classifier may follow.
        activation: makes what follows each BatchNorm.
        dropout: probability behind each hidden linear layer, None for no dropout.
        norm: settings of BatchNorm.
    """
    modules: list[nn.Module] = []
    for conv, pool in zip(convs, pools, strict=True):
        modules += normalized(conv, pool=pool, activation=activation(), **norm)
    modules.append(nn.Flatten())
    for linear in linears:
        modules += normalized(linear, activation=activation(), **norm)
        if dropout is not None:
            modules.append(nn.Dropout(dropout))
    return modules


def stages(
    block: Callable[[int, int, int], nn.Module],
    channels: int,
    widths: Sequence[int],
    depths: Sequence[int],
    expansion: int = 1,
) -> list[nn.Sequential]:
    """The stages of a residual network; each but the first halves the map.

    Args:
        block: makes a block from input channels, width and stride.
        channels: what the first block takes.
        widths: of the blocks of each stage.
        depths: number of blocks of each stage.
        expansion: channels that a block gives, over its width.
    """
    stages: list[nn.Sequential] = []
    for width, depth in zip(widths, depths, strict=True):
        stage = nn.Sequential()
        for i in range(depth):
            stage.append(block(channels, width, 2 if stages and i == 0 else 1))
            channels = expansion * width
        stages.append(stage)
    return stages


def scaled(channels: int, width: float) -> int:
    """The channels of a network `width` times as wide, at least one.

    Raises:
        ValueError: `width` is not positive.
    """
    if not width > 0:
        raise ValueError(f"width must be positive, found {width!r}")
    return max(1, round(channels * width))


def require_positive(**sizes: int) -> None:
    """Checks sizes, given by the names they have for the user.

    Raises:
        ValueError: one is no positive integer.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, found {size!r}")


def require_probability(**probabilities: float) -> None:
    """Checks probabilities, given by the names they have for the user.

    Raises:
        ValueError: one is not in [0, 1].
    """
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} must be in [0, 1], found {probability!r}")


def require_input_size(input_size: int, smallest: int) -> None:
    """Checks the height and width of an image.

    Raises:
        ValueError: it is no integer, or too small for the layers to leave anything of it.
    """
    if not isinstance(input_size, int) or input_size < smallest:
        raise ValueError(
            f"input_size must be an integer of at least {smallest}, found {input_size!r}"
        )
