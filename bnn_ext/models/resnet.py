"""Residual networks, float and binary, for small images (CIFAR) and large ones (ImageNet).

The layout decides the stem and the stages:

| layout     | stem                             | widths             | depths             |
| ---------- | -------------------------------- | ------------------ | ------------------ |
| `cifar`    | 3x3 convolution                  | 16, 32, 64         | 8, 14, 20, 26, ... |
| `imagenet` | 7x7 of stride 2, 3x3 of stride 2 | 64, 128, 256, 512  | 18, 34, 50, 101, 152 |

Images of any size fit, since the head takes the mean of the last map. Source of both layouts: He,
Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015 (arXiv:1512.03385).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import require_positive, stages

_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EXPANSION = 4  # outputs of a bottleneck over its width


@dataclass(frozen=True)
class _Plan:
    """What the settings mean."""

    cifar: bool
    bottleneck: bool
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    num_classes: int

    @property
    def expansion(self) -> int:
        """Channels that a block gives, over its width."""
        return _EXPANSION if self.bottleneck else 1

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1] * self.expansion

    def stages(self, block: Callable[[int, int, int], bnn.Residual]) -> list[nn.Sequential]:
        return stages(block, self.widths[0], self.widths, self.depths, self.expansion)


def resnet_binary(
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    layout: str = "cifar",
    depth: int | None = None,
    inflate: int | None = None,
) -> nn.Sequential:
    """Binary residual network: every layer binary, the stem on the real image.

    A block adds its input, real values that Hardtanh clips, to the sums of its last convolution;
    BatchNorm and Hardtanh follow the sum. So do bottlenecks, and shortcuts that change the shape
    are binary 1x1 convolutions. The last sums are not clipped, but their mean is.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 32x32 for `cifar` and 224x224 for
    `imagenet`.

    Args:
        num_classes: number of logits, by default 10 for `cifar`, 1000 for `imagenet`.
        in_channels: channels of the images.
        layout: `cifar` or `imagenet`.
        depth: 6n + 2 for `cifar`, by default 14: what the reference calls 18 and rounds down. 18,
            34, 50, 101 or 152 for `imagenet`, by default 50.
        inflate: factor of all widths, by default 5 for `cifar`, 1 for `imagenet`.

    Raises:
        ValueError: unknown layout or depth, or a size that is not positive.

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830); the widths and blocks are those of itayhubara/BinaryNet.pytorch, whose
    ImageNet layout does not run: here it follows the rule of the CIFAR layout.
    """
    if inflate is None:
        inflate = 5 if layout == "cifar" else 1
    plan = _plan(layout, depth, inflate, num_classes, in_channels)
    body = plan.stages(_binary_bottleneck if plan.bottleneck else _binary_basic)
    # No Hardtanh behind the last sums: their mean is normalized and clipped instead. BatchNorm in
    # front of the mean then changes nothing, but the reference's parameters include it.
    body[-1][-1].activation = nn.BatchNorm2d(plan.features)
    stem = _binary_conv(in_channels, plan.widths[0], *_stem(plan), input_quantizer=None)
    return nn.Sequential(
        stem,
        *([] if plan.cifar else [nn.MaxPool2d(3, stride=2, padding=1)]),
        nn.BatchNorm2d(plan.widths[0]),
        nn.Hardtanh(),
        *body,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(plan.features),
        nn.Hardtanh(),
        bnn.BinaryLinear(plan.features, plan.num_classes),
        nn.BatchNorm1d(plan.num_classes),
    )


def resnet(
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    layout: str = "cifar",
    depth: int | None = None,
    inflate: int = 1,
) -> nn.Sequential:
    """The float twin, with ReLU and BatchNorm behind every convolution.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 32x32 for `cifar` and 224x224 for
    `imagenet`.

    Args:
        num_classes: number of logits, by default 10 for `cifar`, 1000 for `imagenet`.
        in_channels: channels of the images.
        layout: `cifar` or `imagenet`.
        depth: 6n + 2 for `cifar`, by default 14: what the reference calls 18 and rounds down. 18,
            34, 50, 101 or 152 for `imagenet`, by default 50.
        inflate: factor of all widths.

    Raises:
        ValueError: unknown layout or depth, or a size that is not positive.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015
    (arXiv:1512.03385), shortcuts of type B; stride 2 is that of the 3x3 convolution in a
    bottleneck, as in torchvision.
    """
    plan = _plan(layout, depth, inflate, num_classes, in_channels)
    return nn.Sequential(
        _float_conv(in_channels, plan.widths[0], *_stem(plan)),
        nn.BatchNorm2d(plan.widths[0]),
        nn.ReLU(),
        *([] if plan.cifar else [nn.MaxPool2d(3, stride=2, padding=1)]),
        *plan.stages(_float_bottleneck if plan.bottleneck else _float_basic),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(plan.features, plan.num_classes),
    )


def _plan(
    layout: str, depth: int | None, inflate: int, num_classes: int | None, in_channels: int
) -> _Plan:
    """Checks the settings."""
    if layout not in ("cifar", "imagenet"):
        raise ValueError(f"layout must be cifar or imagenet, found {layout!r}")
    cifar = layout == "cifar"
    if depth is None:
        depth = 14 if cifar else 50
    if num_classes is None:
        num_classes = 10 if cifar else 1000
    require_positive(num_classes=num_classes, in_channels=in_channels, inflate=inflate)
    if cifar:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...) for cifar, found {depth}")
        depths: tuple[int, ...] = ((depth - 2) // 6,) * 3
    elif depth in _BASIC or depth in _BOTTLENECK:
        depths = (_BASIC | _BOTTLENECK)[depth]
    else:
        known = ", ".join(str(number) for number in (*_BASIC, *_BOTTLENECK))
        raise ValueError(f"depth must be one of {known} for imagenet, found {depth}")
    widths = tuple(inflate * width for width in ((16, 32, 64) if cifar else (64, 128, 256, 512)))
    return _Plan(cifar, not cifar and depth in _BOTTLENECK, widths, depths, num_classes)


def _stem(plan: _Plan) -> tuple[int, int]:
    """Kernel size and stride of the first convolution."""
    return (3, 1) if plan.cifar else (7, 2)


# --- binary ---------------------------------------------------------------------------------------


def _binary_conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    input_quantizer: str | None = "ste_sign",
) -> bnn.BinaryConv2d:
    conv = bnn.BinaryConv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2,
        bias=False,
        input_quantizer=input_quantizer,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _binary_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_binary_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _binary_basic(inputs: int, width: int, stride: int) -> bnn.Residual:
    branch = nn.Sequential(
        _binary_conv(inputs, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.Hardtanh(),
        _binary_conv(width, width, 3),
    )
    end = nn.Sequential(nn.BatchNorm2d(width), nn.Hardtanh())
    return bnn.Residual(branch, _binary_shortcut(inputs, width, stride), end)


def _binary_bottleneck(inputs: int, width: int, stride: int) -> bnn.Residual:
    outputs = _EXPANSION * width
    branch = nn.Sequential(
        _binary_conv(inputs, width, 1),
        nn.BatchNorm2d(width),
        nn.Hardtanh(),
        _binary_conv(width, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.Hardtanh(),
        _binary_conv(width, outputs, 1),
    )
    end = nn.Sequential(nn.BatchNorm2d(outputs), nn.Hardtanh())
    return bnn.Residual(branch, _binary_shortcut(inputs, outputs, stride), end)


# --- float ----------------------------------------------------------------------------------------


def _float_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _float_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_float_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _float_basic(inputs: int, width: int, stride: int) -> bnn.Residual:
    branch = nn.Sequential(
        _float_conv(inputs, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _float_conv(width, width, 3),
        nn.BatchNorm2d(width),
    )
    return bnn.Residual(branch, _float_shortcut(inputs, width, stride), nn.ReLU())


def _float_bottleneck(inputs: int, width: int, stride: int) -> bnn.Residual:
    outputs = _EXPANSION * width
    branch = nn.Sequential(
        _float_conv(inputs, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _float_conv(width, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _float_conv(width, outputs, 1),
        nn.BatchNorm2d(outputs),
    )
    return bnn.Residual(branch, _float_shortcut(inputs, outputs, stride), nn.ReLU())
