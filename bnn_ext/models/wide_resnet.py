"""Wide ResNet for small images, BNEW's float teacher."""

from __future__ import annotations

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import require_positive, require_probability, stages


def wrn22(
    num_classes: int = 10, in_channels: int = 3, *, widen: int = 1, dropout: float = 0.0
) -> nn.Sequential:
    """Wide ResNet of 22 layers: three stages of three blocks, BatchNorm and ReLU in front.

    Shape: `[N, in_channels, H, W]` to `[N, num_classes]`; usually 32x32.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        widen: factor of the widths 16, 32 and 64 of the stages.
        dropout: probability between the two convolutions of a block.

    Raises:
        ValueError: a size is not positive, or `dropout` is not in [0, 1].

    Source: Zagoruyko, Komodakis, "Wide Residual Networks", 2016 (arXiv:1605.07146).
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, widen=widen)
    require_probability(dropout=dropout)
    widths = (16 * widen, 32 * widen, 64 * widen)

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        before = (nn.BatchNorm2d(inputs), nn.ReLU())
        convs = (
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        if inputs == outputs:
            return bnn.Residual(nn.Sequential(*before, *convs))
        # Where the shape changes, the shortcut takes the normalized values, too.
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        return nn.Sequential(*before, bnn.Residual(nn.Sequential(*convs), shortcut))

    model = nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        *stages(block, 16, widths, (3, 3, 3)),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return model
