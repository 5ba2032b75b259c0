"""Small files in the formats of MNIST and CIFAR."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torchvision import datasets


def write_mnist(
    root: Path, images: torch.Tensor, labels: torch.Tensor, name: str = "MNIST"
) -> None:
    """Writes the same images as training and test part, in the format of the published files."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">4I", 0x0803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">2I", 0x0801, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


def write_cifar(
    root: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same for CIFAR-10 or CIFAR-100, whose checksums torchvision then has to expect."""
    cls = getattr(datasets, f"CIFAR{classes}")
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    batch = {"data": images.flatten(1).numpy(), key: labels.tolist()}
    names = {cls.meta["key"]: [str(i) for i in range(classes)]}

    def write(name: str, content: object) -> str:
        written = pickle.dumps(content)
        (folder / name).write_bytes(written)
        return hashlib.md5(written).hexdigest()

    monkeypatch.setattr(cls, "train_list", [["train", write("train", batch)]])
    monkeypatch.setattr(cls, "test_list", [["test", write("test", batch)]])
    meta = {**cls.meta, "md5": write(cls.meta["filename"], names)}
    monkeypatch.setattr(cls, "meta", meta)
