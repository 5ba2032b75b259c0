"""What published experiments do to images before training, by name.

| name                  | pixels of 0 .. 255 become           | training         | held out        |
| --------------------- | ----------------------------------- | ---------------- | --------------- |
| `power_of_two`        | x / 128 - 1                         |                  |                 |
| `raw`                 | x                                   |                  |                 |
| `unit`                | x / 255                             |                  |                 |
| `signed_unit`         | 2 x / 255 - 1                       |                  | a tenth         |
| `bop`                 | 2 x / 255 - 1                       | shifted, flipped |                 |
| `mnist_statistics`    | (x / 255 - 0.1307) / 0.3081         |                  |                 |
| `centered`            | x / 255 - mean of all pixels        |                  | a sixth         |
| `imagenet_statistics` | (x / 255 - mean) / std, of ImageNet | shifted, flipped |                 |
| `cifar_statistics`    | (x / 255 - mean) / std, of CIFAR-10 | shifted, flipped |                 |
| `bnew`                | (x / 255 - mean) / std, of CIFAR-10 | shifted, flipped | a tenth, random |
| `zca`                 | whitened x / 255                    |                  | a tenth         |

Shifts are by up to 4 pixels in each direction, black pixels come in from outside, and flips are
left to right. Held out are the last training images, of `bnew` 5,000 in 50,000 that a fixed seed
picks; they choose the best epoch, and the test images are left for the end.

`power_of_two` keeps sums of ±pixels exact in float32, whatever their order: a first layer with
binary weights then gives the same bits in every implementation.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from bnn_ext.data.images import Augmentation

Normalize = Callable[[Tensor], Tensor]  # uint8 to float32, both [N, C, H, W]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_ZCA_EPS = 1e-5
_CHUNK = 5000  # images that are whitened at once, to need little memory
_CROP_AND_FLIP = Augmentation(shift=4, flip=True)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become inputs.

    Attributes:
        fit: makes the normalization from all training pixels and a folder for what took long.
        channels: that it is made for; None for any.
        augmentation: of training images.
        held_out: training images kept for validation, as a fraction.
        split_seed: of a random choice of these; None takes the last.
    """

    fit: Callable[[Tensor, Path], Normalize]
    channels: int | None = None
    augmentation: Augmentation | None = None
    held_out: float = 0.0
    split_seed: int | None = None

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to train with and of those held out, of `count`."""
        kept = count - round(count * self.held_out)
        order = torch.arange(count)
        if self.split_seed is not None:
            order = torch.from_numpy(np.random.RandomState(self.split_seed).permutation(count))
        return order[:kept], order[kept:]


def _affine(
    mean: float | Sequence[float], std: float | Sequence[float]
) -> Callable[[Tensor, Path], Normalize]:
    """(x - mean) / std in units of pixels, for all channels or each."""
    shift, scale = (torch.as_tensor(value).float().view(-1, 1, 1) for value in (mean, std))
    return lambda pixels, cache: lambda x: (x - shift) / scale


def _statistics(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor, Path], Normalize]:
    """The same for statistics of pixels / 255."""
    return _affine([255 * value for value in mean], [255 * value for value in std])


def _centered(pixels: Tensor, cache: Path) -> Normalize:
    return _affine(pixels.double().mean().item(), 255)(pixels, cache)


def _zca(pixels: Tensor, cache: Path) -> Normalize:
    """Decorrelated values that look like the image: (x / 255 - mean) U (S + eps)^-1/2 U^T.

    The matrix takes minutes to find, so it is kept in `cache`, under a name made of the pixels.
    """
    digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]
    path = cache / f"zca-{digest}.safetensors"
    if path.exists():
        stored = safetensors.torch.load_file(path)
        mean, matrix = stored["mean"], stored["matrix"]
    else:
        mean, matrix = _whitening(pixels)
        with contextlib.suppress(OSError):  # the folder of the data may be read-only
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            safetensors.torch.save_file({"mean": mean, "matrix": matrix}, temporary)
            os.replace(temporary, path)

    def whiten(x: Tensor) -> Tensor:
        chunks = [(part.flatten(1) / 255 - mean) @ matrix for part in x.split(_CHUNK)]
        return torch.cat(chunks).view(x.shape)

    return whiten


def _whitening(pixels: Tensor) -> tuple[Tensor, Tensor]:
    size = pixels[0].numel()
    mean = pixels.flatten(1).double().mean(0) / 255
    covariance = torch.zeros(size, size, dtype=torch.float64)
    for part in pixels.split(_CHUNK):
        centered = part.flatten(1).double() / 255 - mean
        covariance.addmm_(centered.T, centered)
    values, vectors = torch.linalg.eigh(covariance / len(pixels))
    matrix = vectors / (values.clamp(min=0) + _ZCA_EPS).sqrt() @ vectors.T
    return mean.float(), matrix.float()


PREPROCESSINGS = {
    "power_of_two": Preprocessing(_affine(128, 128)),
    "raw": Preprocessing(_affine(0, 1)),
    "unit": Preprocessing(_affine(0, 255)),
    "signed_unit": Preprocessing(_affine(127.5, 127.5), held_out=1 / 10),
    "bop": Preprocessing(_affine(127.5, 127.5), augmentation=_CROP_AND_FLIP),
    "mnist_statistics": Preprocessing(_statistics([0.1307], [0.3081]), channels=1),
    "centered": Preprocessing(_centered, held_out=1 / 6),
    "imagenet_statistics": Preprocessing(
        _statistics(IMAGENET_MEAN, IMAGENET_STD), channels=3, augmentation=_CROP_AND_FLIP
    ),
    "cifar_statistics": Preprocessing(
        _statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        channels=3,
        augmentation=_CROP_AND_FLIP,
    ),
    "bnew": Preprocessing(
        _affine((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        channels=3,
        augmentation=_CROP_AND_FLIP,
        held_out=1 / 10,
        split_seed=1234,
    ),
    "zca": Preprocessing(_zca, held_out=1 / 10),
}
