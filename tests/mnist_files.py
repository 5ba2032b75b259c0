"""Small files in the format of MNIST."""

from __future__ import annotations

import struct
from pathlib import Path

import torch


def write_mnist(root: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Writes the same images as training and test part, in the format of the published files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">4I", 0x0803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">2I", 0x0801, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())
